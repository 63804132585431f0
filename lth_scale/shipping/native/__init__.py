"""The CPU kernel for sparse linear layers."""

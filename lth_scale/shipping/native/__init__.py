"""The CPU kernel for sparse linear layers, and encoders that use it."""

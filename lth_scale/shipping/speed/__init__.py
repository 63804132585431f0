"""Timing every engine on this machine."""

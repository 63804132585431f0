"""The backends of the speed check."""

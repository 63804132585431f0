"""Errors, exit codes, atomic files, flags and the paper's defaults. Knows nothing of torch."""

"""Data sources, columns, heads and metrics. Knows nothing of pruning."""

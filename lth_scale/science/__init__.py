"""Studies, their results, statistics, figures and the report. Knows nothing of training."""

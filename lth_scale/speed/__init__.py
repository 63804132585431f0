"""Is the sparse network faster here? `python -m lth_scale.speed TARGETS…` times it in every engine installed."""

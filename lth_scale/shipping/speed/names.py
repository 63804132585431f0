"""Is the sparse network faster here? `python -m lth_scale.speed TARGETS…` times it in every engine installed."""

FILES = ("speed.md", "speed.json", "speed.png")  # that a check writes

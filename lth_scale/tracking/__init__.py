"""Recording runs: the run directory, the console, MLflow and other trackers.

Knows what a stage writes, not what a ticket is for.
"""

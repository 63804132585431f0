"""The training loop, and searches and transfers as its steps. Knows nothing of which engine engine."""

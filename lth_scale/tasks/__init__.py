"""Tasks: data sources, columns, heads and metrics, the paper's eleven and third parties' own.

Knows how text becomes a `Task`: a model with its head, encoded rows, a loss and a score. Must not
know pruning: a task reports the parameters that no checkpoint provided, and training decides which
weights are prunable.
"""

"""Ranks, the pieces of weights that they hold, and engines for DDP, ZeRO and FSDP2.

Knows nothing of pruning. `compat` has every private API of other libraries.
"""

"""Ranks, the pieces that they hold, and one engine each for DDP, ZeRO and FSDP2. Knows nothing of pruning."""

"""What the flags of pruning may name. Does not import torch."""

from lth_scale.pruning.schedules import SCHEDULES

__all__ = ["SCHEDULES"]

"""What training asks of a distributed engine."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lth_scale.distributed.pieces import Piece
from lth_scale.distributed.ranks import Ranks

LossScale = dict[str, float]


class Engine(Protocol):
    """A prepared network whose weights may be sharded over ranks.

    model: what is called for a forward pass. pieces: this rank's piece of every parameter, by its
    name in the model. meta_model: the model on the meta device, unsharded.

    Weights are changed in place, through `pieces` or `load_weights`, followed by `sync`: the engine
    is prepared once and serves every round.
    """

    model: nn.Module
    optimizer: AcceleratedOptimizer
    pieces: Mapping[str, Piece]
    ranks: Ranks
    meta_model: PreTrainedModel

    @property
    def name(self) -> str:
        """Recorded in checkpoints, which only an engine of the same name loads."""

    @property
    def writer(self) -> int:
        """The rank whose checkpoint has the state of this rank: replicas are written once."""

    def warm_up(self, loss: Callable[[], Tensor]) -> None:
        """Run what an engine does at its first backward pass alone. Weights do not change."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one micro-batch, without an optimizer step."""

    def step(self, max_norm: float) -> Tensor | float | None:
        """Clip the gradients, take an optimizer step, and return their norm before clipping.

        `max_norm` 0 turns off clipping; the norm may then be None. A step whose fp16 gradients
        overflow changes nothing. Raises Diverged on all ranks if the loss scale is at its minimum.
        """

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the master weights from whole tensors, without `sync`."""

    def sync(self) -> None:
        """Copy the master weights into every other copy of the weights, on all ranks."""

    def reset(self) -> None:
        """Clear gradients, moments and step counters, and restore the initial loss scale."""

    def loss_scale(self) -> LossScale:
        """Return the state of the loss scale; empty without one."""

    def load_loss_scale(self, state: LossScale) -> None:
        """Load a state returned by `loss_scale`."""

    def state(self) -> dict[str, Tensor]:
        """Return CPU copies of this rank's master weights and optimizer states, with padding."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a `state` saved by this rank at the same world size, between `reset` and `sync`."""

    def gather(self, parts: Mapping[str, Tensor], pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
        """Return whole CPU tensors on the main process, and {} on the others.

        parts: flat fp32 or bool tensors, laid out as `pieces`. Only the main process holds more
        than one whole tensor at a time.
        """

    def all_gather(self, part: Tensor, piece: Piece) -> Tensor:
        """Return a whole fp32 tensor on every rank, from flat parts laid out as `piece`."""

    def full_weights(self) -> dict[str, Tensor]:
        """Return every fp32 master weight on the CPU of the main process, and {} elsewhere."""

    def save_pretrained(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """Write whole `weights` and the model's buffers for `from_pretrained`."""

"""What the engines that Accelerate prepares have in common."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from lth_scale.config.errors import BadInput
from lth_scale.distributed import compat
from lth_scale.distributed.engine import Engine, LossScale
from lth_scale.distributed.pieces import Piece
from lth_scale.distributed.ranks import Ranks


class AcceleratedEngine(Engine):
    """An engine that Accelerate prepares. Subclasses find the pieces and keep copies in sync."""

    sharded = True

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        micro_batch: int,
        max_norm: float,
    ):
        """See `prepare_engine`."""
        names = [name for name, _ in model.named_parameters()]
        self.accelerator, self.micro_batch, self.max_norm = accelerator, micro_batch, max_norm
        self.buffers = saved_buffers(model)
        with torch.device("meta"):
            self.meta_model = type(model)(model.config)
        with self.preparing(model):
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        weights = dict(self.prepared_module(model).named_parameters())
        assert list(weights) == names, "accelerator.prepare has renamed the parameters"
        self.pieces = {name: self.find_piece(weight) for name, weight in weights.items()}
        self.ranks = ranks_of(accelerator, self.sharded)
        check_pieces(self.pieces, self.ranks)
        self.initial_loss_scale = self.loss_scale()

    @contextmanager
    def preparing(self, model: PreTrainedModel) -> Iterator[None]:
        """Enclose `accelerator.prepare`. Raises BadInput if Accelerate cannot prepare the model."""
        try:
            yield
        except ValueError as problem:  # e.g. "Type fp16 is not supported on your device"
            raise BadInput(
                f"--config_file: {self.name} cannot be prepared ({problem}); change the file"
            ) from problem

    def prepared_module(self, model: PreTrainedModel) -> nn.Module:
        """Return the module whose parameters have the names of the model's."""
        return model

    @abstractmethod
    def find_piece(self, weight: nn.Parameter) -> Piece:
        """Return this rank's piece of a prepared parameter."""

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that takes the steps."""
        return self.optimizer.optimizer

    @property
    def owned(self) -> list[Tensor]:
        """The tensors that this rank's optimizer updates, in a fixed order."""
        return [weight for group in self.torch_optimizer.param_groups for weight in group["params"]]

    @property
    def writer(self) -> int:
        """The rank itself if it holds a shard, else rank 0."""
        return self.ranks.index if self.sharded else 0

    def warm_up(self, loss: Callable[[], Tensor]) -> None:
        """Do nothing: the first backward pass is like the others."""
        return

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass on the loss, scaled by Accelerate."""
        self.accelerator.backward(loss)

    def step(self, max_norm: float) -> Tensor | float | None:
        """Clip, step and clear the gradients; return their norm if `max_norm` is not 0."""
        weights = self.model.parameters()
        norm = self.accelerator.clip_grad_norm_(weights, max_norm) if max_norm else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy this rank's pieces of whole tensors into the master weights."""
        for name, piece in self.pieces.items():
            piece.master().copy_(piece.cut(weights[name]))

    def sync(self) -> None:
        """Do nothing: the forward pass reads the master weights."""
        return

    def reset(self) -> None:
        """Clear gradients and optimizer states, and restore the initial loss scale."""
        self.optimizer.zero_grad()
        self.torch_optimizer.state.clear()
        self.load_loss_scale(self.initial_loss_scale)

    def loss_scale(self) -> LossScale:
        """Return the state of Accelerate's gradient scaler, if there is one."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}

    def load_loss_scale(self, state: LossScale) -> None:
        """Load a state returned by `loss_scale`."""
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(dict(state))

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """Return tensor i of `owned` as "i", and its optimizer state of key k as "i/k"."""
        tensors = {}
        for number, owned in enumerate(self.owned):
            tensors[f"{number}"] = owned
            for key, value in self.torch_optimizer.state.get(owned, {}).items():
                if value is not None:
                    is_tensor = isinstance(value, Tensor)
                    tensors[f"{number}/{key}"] = value if is_tensor else torch.tensor(value)
        return {
            name: self.local(tensor).detach().to("cpu", copy=True).contiguous()
            for name, tensor in tensors.items()
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a `state` saved by this rank at the same world size."""
        for number, owned in enumerate(self.owned):
            self.local(owned).copy_(state[f"{number}"])
            for name in (name for name in state if name.startswith(f"{number}/")):
                value = self.restored(owned, state[name])
                self.torch_optimizer.state[owned][name.partition("/")[2]] = value

    def local(self, tensor: Tensor) -> Tensor:
        """Return this rank's part of a tensor of `owned` or of its optimizer states."""
        return tensor

    def restored(self, owned: Tensor, value: Tensor) -> Tensor | int:
        """Return an optimizer state of `owned` from its CPU copy, on the device it belongs to."""
        if value.ndim:
            return value.to(owned.device)
        if value.dtype == torch.int64:
            return int(value)
        groups = self.torch_optimizer.param_groups
        on_device = any(group.get("fused") or group.get("capturable") for group in groups)
        return value.to(owned.device) if on_device else value

    @torch.no_grad()
    def gather(self, parts: Mapping[str, Tensor], pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
        """Return whole CPU tensors on the main process, and {} on the others."""
        wholes = {}
        for name, part in parts.items():
            whole = self._reduce_bits(part, pieces[name])
            if self.ranks.is_main:
                whole = whole.to("cpu", copy=True).view(part.dtype)
                wholes[name] = whole.view(pieces[name].shape)
        return wholes

    def _reduce_bits(self, part: Tensor, piece: Piece) -> Tensor:
        bits = part.view(torch.int32 if part.dtype == torch.float32 else torch.uint8)
        if self.ranks.shards == 1:
            return bits
        whole = torch.zeros(piece.shape.numel(), dtype=bits.dtype, device=self.ranks.device)
        piece.cut(whole).copy_(bits)
        dist.reduce(whole, 0)  # an element is 0 on all ranks but one: the sum of bits is exact
        return whole

    @torch.no_grad()
    def all_gather(self, part: Tensor, piece: Piece) -> Tensor:
        """Return one parameter's whole fp32 tensor on every rank."""
        if self.ranks.shards == 1:
            return part.view(piece.shape)
        whole = torch.zeros(piece.shape.numel(), dtype=torch.int32, device=self.ranks.device)
        piece.cut(whole).copy_(part.view(torch.int32))
        dist.all_reduce(whole)  # as in `gather`
        return whole.view(torch.float32).view(piece.shape)

    def full_weights(self) -> dict[str, Tensor]:
        """Return every fp32 master weight on the CPU of the main process, and {} elsewhere."""
        masters = {name: piece.master() for name, piece in self.pieces.items()}
        return self.gather(masters, self.pieces)

    def save_pretrained(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """Write whole `weights` and the model's buffers for `from_pretrained`."""
        compat.save_unwrapped(self.meta_model, directory, {**self.buffers, **weights})


def saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return CPU copies of the buffers that a checkpoint of the model has."""
    saved = model.state_dict().keys()
    return {
        name: buffer.detach().cpu().clone()
        for name, buffer in model.named_buffers()
        if name in saved
    }


def ranks_of(accelerator: Accelerator, sharded: bool) -> Ranks:
    """Return the ranks of a launch. Called by all of them at once."""
    world_size, device = accelerator.num_processes, accelerator.device
    needs_group = world_size > 1 and device.type != "cpu"
    cpu_group = dist.new_group(backend="gloo") if needs_group else None
    shards = world_size if sharded else 1
    return Ranks(accelerator.process_index, shards, world_size, device, cpu_group)


def check_pieces(pieces: Mapping[str, Piece], ranks: Ranks) -> None:
    """Assert that the pieces of all ranks add up to the parameters."""
    sizes = ranks.sum(torch.tensor([piece.size for piece in pieces.values()])).tolist()
    expected = [piece.shape.numel() for piece in pieces.values()]
    assert sizes == expected, "the pieces do not add up to the parameters"

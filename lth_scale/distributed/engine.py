"""What training asks of a distributed engine, and the code that all engines share."""

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
from lth_scale.distributed.pieces import Piece, Ranks


class Engine:
    """A network prepared by Accelerate, whose weights may be sharded over ranks.

    name: recorded in checkpoints, which only an engine of the same name loads. model: what is
    called for a forward pass. pieces: this rank's piece of every parameter, by its name in the
    model. meta_model: the model on the meta device, unsharded.

    Weights are changed in place, through `pieces` or `load_weights`, followed by `sync`: the engine
    is prepared once and serves every round. A subclass finds the pieces and keeps copies in sync.
    """

    name: str
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
        saved = {*model.state_dict()}  # no reference to the weights, which are sharded below
        self.buffers = {
            name: buffer.detach().cpu().clone()
            for name, buffer in model.named_buffers()
            if name in saved
        }
        with torch.device("meta"):
            self.meta_model = type(model)(model.config)
        self.accelerator, self.micro_batch, self.max_norm = accelerator, micro_batch, max_norm
        with self.preparing(model):
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.pieces = {
            name: self.find_piece(weight)
            for name, weight in self.prepared_module(model).named_parameters()
        }
        assert list(self.pieces) == names, "accelerator.prepare has renamed the parameters"
        world_size, device = accelerator.num_processes, accelerator.device
        needs_group = world_size > 1 and device.type != "cpu"
        cpu_group = dist.new_group(backend="gloo") if needs_group else None
        shards = world_size if self.sharded else 1
        self.ranks = Ranks(accelerator.process_index, shards, world_size, device, cpu_group)
        sizes = self.ranks.sum(torch.tensor([piece.size for piece in self.pieces.values()]))
        expected = [piece.shape.numel() for piece in self.pieces.values()]
        assert sizes.tolist() == expected, "the pieces do not add up to the parameters"
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

    def find_piece(self, weight: nn.Parameter) -> Piece:
        """Return this rank's piece of a prepared parameter."""
        raise NotImplementedError

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
        """The rank whose checkpoint has the state of this rank: replicas are written once."""
        return self.ranks.index if self.sharded else 0

    def warm_up(self, loss: Callable[[], Tensor]) -> None:
        """Run what an engine does only at its first backward pass. Weights do not change."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one micro-batch, without an optimizer step."""
        self.accelerator.backward(loss)

    def step(self, max_norm: float) -> Tensor | float | None:
        """Clip the gradients, take an optimizer step, and return their norm before clipping.

        `max_norm` 0 turns off clipping; the norm may then be None. A step whose fp16 gradients
        overflow changes nothing. Raises Diverged on all ranks if the loss scale is at its minimum.
        """
        weights = self.model.parameters()
        norm = self.accelerator.clip_grad_norm_(weights, max_norm) if max_norm else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the master weights from whole tensors, without `sync`."""
        for name, piece in self.pieces.items():
            piece.master().copy_(piece.cut(weights[name]))

    def sync(self) -> None:
        """Copy the master weights into every other copy of the weights, on all ranks."""

    def reset(self) -> None:
        """Clear gradients, moments and step counters, and restore the initial loss scale."""
        self.optimizer.zero_grad()
        self.torch_optimizer.state.clear()
        self.load_loss_scale(self.initial_loss_scale)

    def loss_scale(self) -> dict[str, float]:
        """Return the state of the loss scale; empty without one."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}

    def load_loss_scale(self, state: Mapping[str, float]) -> None:
        """Load a state returned by `loss_scale`."""
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(dict(state))

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """Return CPU copies of this rank's master weights and optimizer states, with padding.

        Tensor i of `owned` is named "i", and its optimizer state of key k "i/k".
        """
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
        """Load a `state` saved by this rank at the same world size, between `reset` and `sync`."""
        for number, weight in enumerate(self.owned):
            self.local(weight).copy_(state[f"{number}"])
            prefix, states = f"{number}/", self.torch_optimizer.state
            for name in (name for name in state if name.startswith(prefix)):
                states[weight][name.removeprefix(prefix)] = self.restored(weight, state[name])

    def local(self, tensor: Tensor) -> Tensor:
        """Return this rank's part of a tensor of `owned` or of its optimizer states."""
        return tensor

    def restored(self, owned: Tensor, value: Tensor) -> Tensor | int:
        """Return an optimizer state of `owned` from its CPU copy, on the device it belongs to."""
        if not value.ndim and value.dtype == torch.int64:
            return int(value)
        groups = self.torch_optimizer.param_groups
        on_device = any(group.get("fused") or group.get("capturable") for group in groups)
        return value.to(owned.device) if value.ndim or on_device else value

    @torch.no_grad()
    def gather(self, parts: Mapping[str, Tensor], pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
        """Return whole CPU tensors on the main process, and {} on the others.

        parts: flat fp32 or bool tensors, laid out as `pieces`. Only the main process holds more
        than one whole tensor at a time.
        """
        wholes = {}
        for name, part in parts.items():
            bits = part.view(torch.int32 if part.dtype == torch.float32 else torch.uint8)
            if self.ranks.shards > 1:
                bits = self._pad(bits, pieces[name])
                dist.reduce(bits, 0)  # exact: an element is 0 on all ranks but one
            if self.ranks.is_main:
                whole = bits.to("cpu", copy=True).view(part.dtype)
                wholes[name] = whole.view(pieces[name].shape)
        return wholes

    @torch.no_grad()
    def all_gather(self, part: Tensor, piece: Piece) -> Tensor:
        """Return a whole fp32 tensor on every rank, from flat parts laid out as `piece`."""
        if self.ranks.shards == 1:
            return part.view(piece.shape)
        bits = self._pad(part.view(torch.int32), piece)
        dist.all_reduce(bits)  # exact, as in `gather`
        return bits.view(torch.float32).view(piece.shape)

    def _pad(self, bits: Tensor, piece: Piece) -> Tensor:
        """Return a flat tensor of the parameter's size, 0 outside this rank's piece."""
        whole = torch.zeros(piece.shape.numel(), dtype=bits.dtype, device=self.ranks.device)
        piece.cut(whole).copy_(bits)
        return whole

    def full_weights(self) -> dict[str, Tensor]:
        """Return every fp32 master weight on the CPU of the main process, and {} elsewhere."""
        masters = {name: piece.master() for name, piece in self.pieces.items()}
        return self.gather(masters, self.pieces)

    def save_pretrained(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """Write whole `weights` and the model's buffers for `from_pretrained`."""
        compat.save_unwrapped(self.meta_model, directory, {**self.buffers, **weights})

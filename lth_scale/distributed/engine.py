"""Where this rank's piece of every parameter lies under DDP, ZeRO-1 to 3 and FSDP2. No other file knows.

What is not public API was checked against deepspeed 0.19.8, accelerate 1.15.0 and torch 2.13.0;
tests/test_sharding.py fails where it moves. Everything works without a process group.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lth_scale.config.errors import BadInput, Diverged
from lth_scale.distributed.encoder import base_model
from lth_scale.distributed.pieces import PIECES, Piece
from lth_scale.distributed.ranks import Ranks


@dataclass
class Engine:
    """A prepared network, wherever its pieces lie. `pieces`: one of every parameter, by its name in the model."""

    kind: str
    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    pieces: Mapping[str, Piece]
    ranks: Ranks
    meta_model: (
        PreTrainedModel  # the model on the meta device: what a whole network is saved through
    )
    buffers: dict[str, Tensor]
    initial_loss_scale: dict[str, Any] = field(default_factory=dict)

    def warm_up(self, loss: Callable[[], Tensor]) -> None:
        """Let DDP put its buckets in order, which it does after its first backward pass.

        Sums of three or more floats depend on where in a bucket they lie: the first step of a search would
        otherwise not be that of a rewound or resumed one.
        """
        if self.kind == "replicated" and self.ranks.everyone > 1:
            self.backward(loss())
            self.optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch; the step is left to `step` also where DeepSpeed would take it here."""
        if not self.kind.startswith("zero"):
            return self.accelerator.backward(loss)
        engine: Any = self.model
        engine.set_gradient_accumulation_boundary(is_boundary=self.accelerator.sync_gradients)
        engine.backward(loss)

    def step(self, max_norm: float) -> Tensor | float | None:
        """Clip and take the optimizer's step; return the norm before clipping, of the gradients as they are now.

        0 switches clipping off (and outside ZeRO the norm). A step whose fp16 gradients overflow changes nothing.
        Raises Diverged on all ranks where DeepSpeed cannot lower the loss scale any more.
        """
        if self.kind.startswith("zero"):
            engine: Any = self.model
            self._measure_offloaded_gradients()
            try:
                engine.step()
            except Exception as problem:
                if "loss scale already at minimum" not in str(
                    problem
                ):  # deepspeed 0.19.8 has no class for it
                    raise
                raise Diverged(
                    "the gradients overflow fp16 at the smallest loss scale; the rounds before this one stand: lower "
                    "--learning_rate, or take --bf16, in another --output_dir"
                ) from problem
            norm = engine.get_global_grad_norm()
        else:
            norm = (
                self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm)
                if max_norm
                else None
            )
            self.optimizer.step()
            self.optimizer.zero_grad()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _measure_offloaded_gradients(self) -> None:
        """Under optimizer offload DeepSpeed took the norms in backward, before the gradients were masked."""
        zero = self.optimizer.optimizer
        norms = getattr(
            zero, "norm_for_param_grads", None
        )  # deepspeed 0.19.8: exists under offload alone
        if norms is None:
            return
        for weight, piece in zip(self._weights, self.pieces.values(), strict=True):
            gradient, key = piece.gradient(), zero.get_param_id(weight)
            if gradient is not None and key in norms:
                norms[key] = gradient.float().norm()

    @property
    def _weights(self) -> Iterable[nn.Parameter]:
        return self.model.module.parameters()  # type: ignore[union-attr, operator]

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set every master piece from whole tensors. `sync` makes the other copies follow."""
        for name, piece in self.pieces.items():
            piece.master().copy_(piece.cut(weights[name]))

    @torch.no_grad()
    def sync(self) -> None:
        """Make every copy of every weight, on all ranks, agree with the masters."""
        zero = self.optimizer.optimizer
        if self.kind in ("zero1", "zero2"):
            zero.update_lp_params()
        elif self.kind == "zero3":  # deepspeed 0.19.8, as at the end of its own step
            zero.checkpoint_event_prologue()
            for group in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(group)
            zero.checkpoint_event_epilogue()
        elif (
            self.kind == "fsdp2"
        ):  # evaluation leaves the root's parameters gathered, and they would stay as they are
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def reset(self) -> None:
        """Clear gradients, moments, step counters and the loss scale: as if nothing had been trained."""
        self.optimizer.zero_grad()
        self._base.state.clear()
        if self.kind.startswith("zero"):
            self.optimizer.optimizer._hp_optimizer_states_linked = (
                False  # deepspeed 0.19.8: it would keep old moments
            )
        self.load_loss_scale(self.initial_loss_scale)

    @property
    def _base(self) -> torch.optim.Optimizer:
        """The torch optimizer that takes the steps."""
        inner = self.optimizer.optimizer
        return inner.optimizer if self.kind.startswith("zero") else inner

    @property
    def _owned(self) -> list[Tensor]:
        """The tensors that this rank's optimizer updates, in a fixed order."""
        if self.kind in ("zero1", "zero2"):
            return self.optimizer.optimizer.single_partition_of_fp32_groups
        if self.kind == "zero3":
            return self.optimizer.optimizer.fp32_partitioned_groups_flat
        return [weight for group in self._base.param_groups for weight in group["params"]]

    @property
    def writer(self) -> int:
        """The rank that writes down what this rank holds: replicas are written once."""
        return 0 if self.kind == "replicated" else self.ranks.index

    def loss_scale(self) -> dict[str, Any]:
        """The state of the loss scale: numbers."""
        if self.kind.startswith("zero"):
            state = vars(self.optimizer.optimizer.loss_scaler)
            return {name: value for name, value in state.items() if isinstance(value, int | float)}
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}

    def load_loss_scale(self, scale: Mapping[str, Any]) -> None:
        """Put the loss scale into a state that `loss_scale` gave."""
        if self.kind.startswith("zero"):
            vars(self.optimizer.optimizer.loss_scaler).update(scale)
        elif self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(dict(scale))

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """CPU copies of this rank's masters and everything that the optimizer remembers of them, padding included."""
        found = {}
        for number, owned in enumerate(self._owned):
            found[f"{number}"] = owned
            for key, value in self._base.state.get(owned, {}).items():
                if value is not None:
                    found[f"{number}/{key}"] = (
                        value if isinstance(value, Tensor) else torch.tensor(value)
                    )
        return {
            name: _local(value).detach().to("cpu", copy=True).contiguous()
            for name, value in found.items()
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Be as `state` found it, on the same rank of as many, after `reset`. `sync` makes the copies follow."""
        groups = self._base.param_groups
        counters_on = (
            "cpu"
            if not any(group.get("fused") or group.get("capturable") for group in groups)
            else None
        )
        for number, owned in enumerate(self._owned):
            _local(owned).copy_(state[f"{number}"])
            for name in (name for name in state if name.startswith(f"{number}/")):
                self._base.state[owned][name.partition("/")[2]] = _like(
                    owned, state[name], counters_on
                )

    @torch.no_grad()
    def gather(self, parts: Mapping[str, Tensor], pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
        """Whole CPU tensors on the main process and {} on the others, of flat fp32 or bool parts laid out as `pieces`.

        One parameter at a time: no rank but the main one ever holds more than one whole.
        """
        wholes = {}
        for name, part in parts.items():
            whole = self._whole(part, pieces[name])
            if self.accelerator.is_main_process:
                wholes[name] = whole.to("cpu", copy=True).view(part.dtype).view(pieces[name].shape)
        return wholes

    def _whole(self, part: Tensor, piece: Piece) -> Tensor:
        bits = part.view(torch.int32 if part.dtype == torch.float32 else torch.uint8)
        if self.ranks.count == 1:
            return bits
        whole = torch.zeros(piece.shape.numel(), dtype=bits.dtype, device=self.ranks.device)
        piece.cut(whole).copy_(bits)
        dist.reduce(
            whole, 0
        )  # every place is zero on all ranks but one, so the bits arrive as they are
        return whole

    @torch.no_grad()
    def all_gather(self, part: Tensor, piece: Piece) -> Tensor:
        """The whole of one parameter, fp32, of its shape, on every rank, from flat fp32 parts laid out as `piece`."""
        if self.ranks.count == 1:
            return part.view(piece.shape)
        whole = torch.zeros(piece.shape.numel(), dtype=torch.int32, device=self.ranks.device)
        piece.cut(whole).copy_(part.view(torch.int32))
        dist.all_reduce(whole)  # every place is zero on all ranks but one
        return whole.view(torch.float32).view(piece.shape)

    def full_weights(self) -> dict[str, Tensor]:
        """Every parameter in fp32 on the CPU of the main process, {} elsewhere."""
        return self.gather(
            {name: piece.master() for name, piece in self.pieces.items()}, self.pieces
        )

    def save_pretrained(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """Write whole `weights` and the buffers for `from_pretrained`.

        transformers has Accelerate unwrap what it saves, which imports DeepSpeed; the meta_model is not wrapped.
        """
        with mock.patch("transformers.modeling_utils.unwrap_model", lambda bare: bare):
            self.meta_model.save_pretrained(directory, state_dict={**self.buffers, **weights})


def prepare_engine(
    accelerator: Accelerator,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    micro_batch: int,
    max_norm: float,
) -> Engine:
    """Hand model and optimizer to Accelerate, once, and find the pieces. Raises BadInput."""
    with torch.device("meta"):
        meta_model = type(model)(model.config)
    kept = model.state_dict().keys()
    buffers = {
        name: value.detach().cpu().clone() for name, value in model.named_buffers() if name in kept
    }
    kind, names = _kind(accelerator), [name for name, _ in model.named_parameters()]
    if kind.startswith("zero"):
        _configure_deepspeed(accelerator, micro_batch, max_norm)
    elif kind == "fsdp2":
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layer_classes(model)
    try:
        with _one_root_group(model) if kind == "fsdp2" else nullcontext():
            prepared, wrapped = accelerator.prepare(model, optimizer)
    except ValueError as problem:  # such as DeepSpeed's "Type fp16 is not supported on your device"
        raise BadInput(
            f"--config_file: {kind} cannot be prepared ({problem}); change it"
        ) from problem
    module = prepared.module if kind.startswith("zero") else model
    weights = dict(module.named_parameters())
    assert list(weights) == names, "preparing has renamed the parameters"
    owner = wrapped.optimizer if kind.startswith("zero") else wrapped
    pieces = {name: PIECES[kind](weight, owner) for name, weight in weights.items()}
    everyone, device = accelerator.num_processes, accelerator.device
    side = dist.new_group(backend="gloo") if everyone > 1 and device.type != "cpu" else None
    ranks = Ranks(
        accelerator.process_index, 1 if kind == "replicated" else everyone, everyone, device, side
    )
    tiled = ranks.sum(torch.tensor([piece.size for piece in pieces.values()])).tolist()
    assert tiled == [piece.shape.numel() for piece in pieces.values()], (
        "the pieces do not make up the parameters"
    )
    engine = Engine(kind, accelerator, prepared, wrapped, pieces, ranks, meta_model, buffers)
    engine.initial_loss_scale = engine.loss_scale()
    return engine


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(owned: Tensor, value: Tensor, counters_on: str | None) -> Any:
    """What an optimizer remembers of `owned`, where it belongs: moments as `owned`, counters on the CPU or numbers."""
    if value.dtype == torch.int64 and value.ndim == 0:
        return value.item()
    if isinstance(owned, DTensor) and value.shape == _local(owned).shape:
        return DTensor.from_local(
            value.to(owned.device),
            owned.device_mesh,
            owned.placements,
            shape=owned.shape,
            stride=owned.stride(),
        )
    return value.to(owned.device if value.ndim else counters_on or owned.device)


def layer_classes(model: nn.Module) -> list[str]:
    """The classes of the encoder's layers, which FSDP makes units of; a list of lists has layers in the inner ones."""
    lists = (module for module in base_model(model).modules() if isinstance(module, nn.ModuleList))
    layers = (layer for stack in lists for layer in stack if not isinstance(layer, nn.ModuleList))
    return sorted({type(layer).__name__ for layer in layers})


def _kind(accelerator: Accelerator) -> str:
    if accelerator.distributed_type == DistributedType.FSDP:
        return "fsdp2"
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return "replicated"
    stage = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"]
    if stage not in (1, 2, 3):
        raise BadInput(
            f"zero_stage {stage}: engine nothing; take accelerate_configs/multi_gpu_ddp.yaml instead"
        )
    return f"zero{stage}"


@contextmanager
def _one_root_group(model: nn.Module) -> Iterator[None]:
    """Keep embeddings and decoder in the root's group.

    Accelerate 1.15 gives them a group of their own, and the bias that BERT's decoder shares with its head
    stays in another, which torch 2.13 refuses.
    """
    model.get_input_embeddings = model.get_output_embeddings = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings


def _configure_deepspeed(accelerator: Accelerator, micro_batch: int, max_norm: float) -> None:
    """Let the flags decide what the DeepSpeed configuration could say as well. Raises BadInput."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    for key, flag in (("optimizer", "--optim"), ("scheduler", "--lr_scheduler_type")):
        if key in config:
            raise BadInput(
                f"deepspeed_config_file: has a {key!r}, which {flag} decides; take it out"
            )
    for part in ("offload_optimizer", "offload_param"):
        if config["zero_optimization"].get(part, {}).get("device") == "nvme":
            raise BadInput(f"{part}_device nvme: is not supported; use cpu")
    config |= {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
        "gradient_clipping": max_norm,
    }
    config.setdefault(
        "zero_force_ds_cpu_optimizer", False
    )  # --optim decides, also where it runs on the CPU

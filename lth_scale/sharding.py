"""Where this rank's piece of every parameter lies under DDP, ZeRO-1 to 3 and FSDP2. No other file knows.

What is not public API was checked against deepspeed 0.19.8, accelerate 1.15.0 and torch 2.13.0;
tests/test_sharding.py fails where it moves. Everything works without a process group.
"""

import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel
from transformers.integrations import unset_hf_deepspeed_config

from lth_scale.arguments import BadInput, Diverged, Stopped
from lth_scale.prunable import base_model

ON_CPU = "accelerate_configs/*_cpu.yaml"


@dataclass(frozen=True)
class Ranks:
    """The ranks that hold the other pieces. Alone, or among replicas, a sum is the number itself.

    index: this rank. count: how many ranks the pieces are spread over. everyone: how many there are. side: a group
    whose messages do not wait for the GPU.
    """

    index: int = 0
    count: int = 1
    everyone: int = 1
    device: str | torch.device = "cpu"
    side: Any = None

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over the ranks that hold pieces, the same on all of them; int64 in and out."""
        return numbers if self.count == 1 else self._reduce(numbers, dist.ReduceOp.SUM)

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers."""
        return number if self.everyone == 1 else int(self._reduce(torch.tensor([number]), dist.ReduceOp.MIN))

    def most(self, number: int) -> int:
        """The largest of all ranks' numbers, told from CPU to CPU."""
        numbers = torch.tensor([number])
        if self.everyone > 1:
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.side)
        return int(numbers)

    def _reduce(self, numbers: Tensor, how: Any) -> Tensor:
        on_wire = numbers.to(self.device, copy=True)
        dist.all_reduce(on_wire, how)
        return on_wire.to(numbers.device)


@dataclass(frozen=True)
class Piece:
    """This rank's part of one parameter: `size` elements of the whole, flattened row-major, from `offset` on.

    The callables give flat views of live memory, without padding: `master`, the fp32 weights that the optimizer
    updates; `working`, the weights that the forward pass reads (the master itself where there is one copy);
    `gradient`, what the next step will see, or None outside backward … step; `moments` of the optimizer by their
    keys (exp_avg …), those of the weights' shape alone. A piece may be empty.
    """

    shape: torch.Size
    offset: int
    size: int
    master: Callable[[], Tensor]
    working: Callable[[], Tensor]
    gradient: Callable[[], Tensor | None]
    moments: Callable[[], dict[str, Tensor]]

    def cut(self, whole: Tensor) -> Tensor:
        """The same part of a tensor of the parameter's shape."""
        return whole.reshape(-1)[self.offset : self.offset + self.size]


def replicated(weight: nn.Parameter, optimizer: torch.optim.Optimizer) -> Piece:
    """One process and DDP: every rank holds the whole."""
    return Piece(
        weight.shape,
        offset=0,
        size=weight.numel(),
        master=lambda: weight.detach().view(-1),
        working=lambda: weight.detach().view(-1),
        gradient=lambda: None if weight.grad is None else weight.grad.view(-1),
        moments=lambda: {key: value.view(-1) for key, value in _states(optimizer, weight).items()},
    )


def fsdp2(weight: DTensor, optimizer: torch.optim.Optimizer) -> Piece:
    """FSDP2: whole rows, evenly; the last ranks may have none. The bf16 copy lives only while a layer runs."""
    if tuple(weight.placements) != (Shard(0),):
        raise BadInput(f"FSDP2: parameters lie as {weight.placements}; use one mesh dimension, sharded on rows")
    rows = -(-weight.shape[0] // weight.device_mesh.size())
    width = weight.numel() // max(1, weight.shape[0])

    def local(tensor: Tensor) -> Tensor:
        with torch.no_grad():
            return tensor.to_local().view(-1)  # type: ignore[attr-defined]

    return Piece(
        weight.shape,
        offset=min(rows * weight.device_mesh.get_local_rank(), weight.shape[0]) * width,
        size=local(weight).numel(),
        master=lambda: local(weight),
        working=lambda: local(weight),
        gradient=lambda: None if weight.grad is None else local(weight.grad),
        moments=lambda: {key: local(value) for key, value in _states(optimizer, weight).items()},
    )


def _states(optimizer: Any, weight: Tensor) -> dict[str, Tensor]:
    """The optimizer's states of `weight` that have its shape and hold numbers (not 8-bit codes)."""
    states = getattr(optimizer, "optimizer", optimizer).state.get(weight, {})
    return {
        key: value
        for key, value in states.items()
        if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point()
    }


def zero12(weight: nn.Parameter, zero: Any) -> Piece:
    """ZeRO-1 and 2: a run of the flattened group, whose fp32 master only this rank has; often nothing."""
    link = weight._hp_mapping  # type: ignore[attr-defined]  # deepspeed 0.19.8: None where this rank owns nothing of it
    if link is None:
        return _nothing(weight.shape, weight)
    offset, size, at = link.lp_fragment_address.start, link.lp_fragment_address.numel, link.hp_fragment_address.start
    flat = zero.single_partition_of_fp32_groups[link.param_group_index]

    def gradient() -> Tensor | None:
        with suppress(ValueError):  # there is none now
            return link.get_lp_grad_fragment(weight._index_in_param_group).view(-1)  # type: ignore[attr-defined]
        return None

    return Piece(
        weight.shape,
        offset,
        size,
        master=lambda: flat.detach().narrow(0, at, size),
        working=lambda: weight.detach().view(-1).narrow(0, offset, size),
        gradient=gradient,
        moments=lambda: {key: value.narrow(0, at, size) for key, value in _states(zero.optimizer, flat).items()},
    )


def zero3(weight: nn.Parameter, zero: Any) -> Piece:
    """ZeRO-3: an even run of each parameter. What fills up the last ranks' runs is uninitialised memory."""
    share, numel = weight.partition_numel(), weight.ds_numel  # type: ignore[attr-defined]
    offset = min(share * dist.get_rank(weight.ds_process_group), numel)  # type: ignore[attr-defined]
    size = min(share, numel - offset)
    group, at, _ = zero.grad_position[zero.get_param_id(weight)]  # deepspeed 0.19.8
    flat = zero.fp32_partitioned_groups_flat[group]
    index = next(i for i, other in enumerate(zero.fp16_groups[group]) if other is weight)

    def gradient() -> Tensor | None:
        if zero.offload_optimizer:
            return None if flat.grad is None else flat.grad.narrow(0, at, size)
        averaged = zero.averaged_gradients.get(group)
        return None if averaged is None else averaged[index].view(-1).narrow(0, 0, size)

    return Piece(
        weight.ds_shape,  # type: ignore[attr-defined]
        offset,
        size,
        master=lambda: flat.detach().narrow(0, at, size),
        working=lambda: weight.ds_tensor.detach().view(-1).narrow(0, 0, size),  # type: ignore[attr-defined]
        gradient=gradient,
        moments=lambda: {key: value.narrow(0, at, size) for key, value in _states(zero.optimizer, flat).items()},
    )


def _nothing(shape: torch.Size, like: Tensor) -> Piece:
    empty = torch.empty(0, device=like.device)
    return Piece(shape, 0, 0, lambda: empty, lambda: empty.to(like.dtype), lambda: None, dict)


PIECES: dict[str, Callable[..., Piece]] = {
    "replicated": replicated,
    "fsdp2": fsdp2,
    "zero1": zero12,
    "zero2": zero12,
    "zero3": zero3,
}


@dataclass
class Shards:
    """A prepared network, wherever its pieces lie. `pieces`: one of every parameter, by its name in the model."""

    kind: str
    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    pieces: Mapping[str, Piece]
    ranks: Ranks
    skeleton: PreTrainedModel  # the model on the meta device: what a whole network is saved through
    buffers: dict[str, Tensor]
    first_scale: dict[str, Any] = field(default_factory=dict)

    def settle(self, loss: Callable[[], Tensor]) -> None:
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
                if "loss scale already at minimum" not in str(problem):  # deepspeed 0.19.8 has no class for it
                    raise
                raise Diverged(
                    "the gradients overflow fp16 at the smallest loss scale; the rounds before this one stand: lower "
                    "--learning_rate, or take --bf16, in another --output_dir"
                ) from problem
            norm = engine.get_global_grad_norm()
        else:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm) if max_norm else None
            self.optimizer.step()
            self.optimizer.zero_grad()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _measure_offloaded_gradients(self) -> None:
        """Under optimizer offload DeepSpeed took the norms in backward, before the gradients were masked."""
        zero = self.optimizer.optimizer
        norms = getattr(zero, "norm_for_param_grads", None)  # deepspeed 0.19.8: exists under offload alone
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
    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Set every master piece from whole tensors. `publish` makes the other copies follow."""
        for name, piece in self.pieces.items():
            piece.master().copy_(piece.cut(weights[name]))

    @torch.no_grad()
    def publish(self) -> None:
        """Make every copy of every weight, on all ranks, agree with the masters."""
        zero = self.optimizer.optimizer
        if self.kind in ("zero1", "zero2"):
            zero.update_lp_params()
        elif self.kind == "zero3":  # deepspeed 0.19.8, as at the end of its own step
            zero.checkpoint_event_prologue()
            for group in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(group)
            zero.checkpoint_event_epilogue()
        elif self.kind == "fsdp2":  # evaluation leaves the root's parameters gathered, and they would stay as they are
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def forget(self) -> None:
        """Clear gradients, moments, step counters and the loss scale: as if nothing had been trained."""
        self.optimizer.zero_grad()
        self._base.state.clear()
        if self.kind.startswith("zero"):
            self.optimizer.optimizer._hp_optimizer_states_linked = False  # deepspeed 0.19.8: it would keep old moments
        self.set_scale(self.first_scale)

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
    def keeper(self) -> int:
        """The rank that writes down what this rank holds: replicas are written once."""
        return 0 if self.kind == "replicated" else self.ranks.index

    def scale(self) -> dict[str, Any]:
        """The state of the loss scale: numbers."""
        if self.kind.startswith("zero"):
            state = vars(self.optimizer.optimizer.loss_scaler)
            return {name: value for name, value in state.items() if isinstance(value, int | float)}
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}

    def set_scale(self, scale: Mapping[str, Any]) -> None:
        """Put the loss scale into a state that `scale` gave."""
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
                    found[f"{number}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return {name: _local(value).detach().to("cpu", copy=True).contiguous() for name, value in found.items()}

    @torch.no_grad()
    def take(self, state: Mapping[str, Tensor]) -> None:
        """Be as `state` found it, on the same rank of as many, after `forget`. `publish` makes the copies follow."""
        groups = self._base.param_groups
        counters_on = "cpu" if not any(group.get("fused") or group.get("capturable") for group in groups) else None
        for number, owned in enumerate(self._owned):
            _local(owned).copy_(state[f"{number}"])
            for name in (name for name in state if name.startswith(f"{number}/")):
                self._base.state[owned][name.partition("/")[2]] = _like(owned, state[name], counters_on)

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
        dist.reduce(whole, 0)  # every place is zero on all ranks but one, so the bits arrive as they are
        return whole

    @torch.no_grad()
    def everywhere(self, part: Tensor, piece: Piece) -> Tensor:
        """The whole of one parameter, fp32, of its shape, on every rank, from flat fp32 parts laid out as `piece`."""
        if self.ranks.count == 1:
            return part.view(piece.shape)
        whole = torch.zeros(piece.shape.numel(), dtype=torch.int32, device=self.ranks.device)
        piece.cut(whole).copy_(part.view(torch.int32))
        dist.all_reduce(whole)  # every place is zero on all ranks but one
        return whole.view(torch.float32).view(piece.shape)

    def whole_weights(self) -> dict[str, Tensor]:
        """Every parameter in fp32 on the CPU of the main process, {} elsewhere."""
        return self.gather({name: piece.master() for name, piece in self.pieces.items()}, self.pieces)

    def save(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """Write whole `weights` and the buffers for `from_pretrained`.

        transformers has Accelerate unwrap what it saves, which imports DeepSpeed; the skeleton is not wrapped.
        """
        with mock.patch("transformers.modeling_utils.unwrap_model", lambda bare: bare):
            self.skeleton.save_pretrained(directory, state_dict={**self.buffers, **weights})


def connect(precision: str | None, accumulate: int, timeout: float) -> Accelerator:
    """Accelerate's state for this process, on GPU or CPU; ranks wait `timeout` seconds for each other.

    Raises BadInput where launcher and flags do not fit.
    """
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # or transformers would read θ₀ on the first rank alone
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            _meet("nccl" if torch.cuda.is_available() else "gloo", group.timeout)
        if not torch.cuda.is_available():
            _settle_for_cpu(group)
        accelerator = Accelerator(
            mixed_precision=precision,
            # a plugin, because the launcher's variable would overrule the plain argument
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulate),
            kwargs_handlers=[group],
        )
    except (ValueError, ImportError) as problem:
        raise BadInput(f"--{precision or 'config_file'}: {problem}; change one of them") from problem
    except RuntimeError as problem:  # dist.DistError and what gloo says
        raise Stopped(f"--ddp_timeout {timeout:g}: the ranks have not found each other ({problem}); see to it that all "
                      "are started, or give them longer") from problem  # fmt: skip
    unset_hf_deepspeed_config()  # or transformers would cut θ₀ up, and round it, as it reads it (ZeRO-3)
    _check_launch(accelerator)
    return accelerator


def _meet(backend: str, timeout: timedelta) -> None:
    """Start the process group without what an attempt that failed has left in the launcher's store.

    torch 2.13 shares one store among all attempts (pytorch #135712): a rank that comes early would take an address of
    the last one. So rank 0 gives its attempt a name, and repeats it until all have heard it.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    soon = min(timeout, timedelta(minutes=1))  # a launcher has its store up before it starts anything
    store: Any = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, False, soon)
    store.set_timeout(timeout)
    key, met, name = "lth_scale.attempt", threading.Event(), uuid.uuid4().hex
    if rank == 0:
        own = store.clone()  # the main thread's connection will be busy waiting

        def repeat() -> None:
            for count in itertools.count():
                own.set(key, f"{name} {count}")
                if met.wait(0.1):
                    return

        threading.Thread(target=repeat, daemon=True).start()
    else:
        before, until = store.get(key), time.monotonic() + timeout.total_seconds()
        while (heard := store.get(key)) == before:
            if time.monotonic() > until:
                raise RuntimeError("rank 0 has not come")
            time.sleep(0.05)
        name = heard.decode().split()[0]
    dist.init_process_group(backend, store=dist.PrefixStore(name, store), rank=rank, world_size=world, timeout=timeout)
    met.set()


def _settle_for_cpu(group: InitProcessGroupKwargs) -> None:
    """Let DeepSpeed and FSDP run on gloo ranks.

    Accelerate 1.15 takes FSDP up on accelerators alone, and on CPU would train the ranks apart without a word.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        group.backend = "gloo"
        _compile_nothing()
    elif os.environ.get("ACCELERATE_USE_FSDP") == "true" and "LOCAL_RANK" in os.environ:
        PartialState(cpu=True, **group.to_kwargs()).distributed_type = DistributedType.MULTI_GPU


def _compile_nothing() -> None:
    """DeepSpeed compiles a collective for inference (deepspeed/comm/torch.py), a minute that training has no use for.

    So no compiler is needed, and a compile that is killed leaves no lock at which later runs would wait for ever.
    """
    from deepspeed import ops

    vars(ops)["__compatible_ops__"] = {}


def _check_launch(accelerator: Accelerator) -> None:
    kind, precision, device = accelerator.distributed_type, accelerator.mixed_precision, accelerator.device.type
    if precision == "fp16" and device == "cpu" and kind != DistributedType.DEEPSPEED:
        raise BadInput("--fp16: has no loss scaling on cpu; take a GPU, or --bf16")
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise BadInput("fsdp_version 1: its flat parameters are not supported; set fsdp_version: 2")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise BadInput(
            f"--num_processes {launched}: this process is alone ({accelerator.num_processes} of {launched}); on CPU "
            f"launch with ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N, or take {ON_CPU}"
        )


def prepare(
    accelerator: Accelerator,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    micro_batch: int,
    max_norm: float,
) -> Shards:
    """Hand model and optimizer to Accelerate, once, and find the pieces. Raises BadInput."""
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    kept = model.state_dict().keys()
    buffers = {name: value.detach().cpu().clone() for name, value in model.named_buffers() if name in kept}
    kind, names = _kind(accelerator), [name for name, _ in model.named_parameters()]
    if kind.startswith("zero"):
        _configure_deepspeed(accelerator, micro_batch, max_norm)
    elif kind == "fsdp2":
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layer_classes(model)
    try:
        with _one_root_group(model) if kind == "fsdp2" else nullcontext():
            prepared, wrapped = accelerator.prepare(model, optimizer)
    except ValueError as problem:  # such as DeepSpeed's "Type fp16 is not supported on your device"
        raise BadInput(f"--config_file: {kind} cannot be prepared ({problem}); change it") from problem
    module = prepared.module if kind.startswith("zero") else model
    weights = dict(module.named_parameters())
    assert list(weights) == names, "preparing has renamed the parameters"
    owner = wrapped.optimizer if kind.startswith("zero") else wrapped
    pieces = {name: PIECES[kind](weight, owner) for name, weight in weights.items()}
    everyone, device = accelerator.num_processes, accelerator.device
    side = dist.new_group(backend="gloo") if everyone > 1 and device.type != "cpu" else None
    ranks = Ranks(accelerator.process_index, 1 if kind == "replicated" else everyone, everyone, device, side)
    tiled = ranks.sum(torch.tensor([piece.size for piece in pieces.values()])).tolist()
    assert tiled == [piece.shape.numel() for piece in pieces.values()], "the pieces do not make up the parameters"
    shards = Shards(kind, accelerator, prepared, wrapped, pieces, ranks, skeleton, buffers)
    shards.first_scale = shards.scale()
    return shards


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(owned: Tensor, value: Tensor, counters_on: str | None) -> Any:
    """What an optimizer remembers of `owned`, where it belongs: moments as `owned`, counters on the CPU or numbers."""
    if value.dtype == torch.int64 and value.ndim == 0:
        return value.item()
    if isinstance(owned, DTensor) and value.shape == _local(owned).shape:
        return DTensor.from_local(value.to(owned.device), owned.device_mesh, owned.placements,
                                  shape=owned.shape, stride=owned.stride())  # fmt: skip
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
        raise BadInput(f"zero_stage {stage}: shards nothing; take accelerate_configs/multi_gpu_ddp.yaml instead")
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
            raise BadInput(f"deepspeed_config_file: has a {key!r}, which {flag} decides; take it out")
    for part in ("offload_optimizer", "offload_param"):
        if config["zero_optimization"].get(part, {}).get("device") == "nvme":
            raise BadInput(f"{part}_device nvme: is not supported; use cpu")
    config |= {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accelerator.gradient_accumulation_steps,
        "gradient_clipping": max_norm,
    }
    config.setdefault("zero_force_ds_cpu_optimizer", False)  # --optim decides, also where it runs on the CPU

"""DeepSpeed's ZeRO stages 1 to 3. Its private API is in `compat`."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from lth_scale.config.errors import BadInput, Diverged
from lth_scale.distributed import compat
from lth_scale.distributed.engine import Engine
from lth_scale.distributed.pieces import Piece, moments_of

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer


class ZeroEngine(Engine):
    """The code of all stages: DeepSpeed scales, clips and steps."""

    model: "DeepSpeedEngine"

    @contextmanager
    def preparing(self, model: PreTrainedModel) -> Iterator[None]:
        """Set from the flags what the DeepSpeed configuration could also set. Raises BadInput."""
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        config = compat.deepspeed_config(self.accelerator)
        self.name = f"zero{config['zero_optimization']['stage']}"
        _check_config(config)
        config |= {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.accelerator.gradient_accumulation_steps,
            "gradient_clipping": self.max_norm,
        }
        # --optim decides, even if its steps run on the CPU
        config.setdefault("zero_force_ds_cpu_optimizer", False)
        with super().preparing(model):
            yield

    def prepared_module(self, model: PreTrainedModel) -> nn.Module:
        return self.model.module

    @property
    def zero(self) -> "DeepSpeedZeroOptimizer":
        return self.optimizer.optimizer

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        return self.zero.optimizer

    def backward(self, loss: Tensor) -> None:
        """Run DeepSpeed's backward pass. Accelerate's would also take the step."""
        boundary = self.accelerator.sync_gradients
        self.model.set_gradient_accumulation_boundary(is_boundary=boundary)
        self.model.backward(loss)

    def step(self, max_norm: float) -> Tensor | float | None:
        """Take DeepSpeed's step, which clips to the configured norm. Raises Diverged."""
        self._measure_offloaded_gradients()
        try:
            self.model.step()
        except Exception as problem:
            if not compat.is_loss_scale_exhausted(problem):
                raise
            raise Diverged(
                "the gradients overflow fp16 at the minimum loss scale; earlier rounds are kept: "
                "lower --learning_rate or use --bf16, in another --output_dir"
            ) from problem
        return self.model.get_global_grad_norm()

    def _measure_offloaded_gradients(self) -> None:
        """Measure again the norms that the backward pass took before gradients were masked."""
        norms = compat.offloaded_norms(self.zero)
        if norms is None:
            return
        weights = self.model.module.parameters()
        for weight, piece in zip(weights, self.pieces.values(), strict=True):
            gradient, key = piece.gradient(), self.zero.get_param_id(weight)
            if gradient is not None and key in norms:
                norms[key] = gradient.float().norm()

    def reset(self) -> None:
        super().reset()
        compat.forget_linked_moments(self.zero)

    def loss_scale(self) -> dict[str, float]:
        state = compat.loss_scaler(self.zero)
        return {name: value for name, value in state.items() if isinstance(value, int | float)}

    def load_loss_scale(self, state: Mapping[str, float]) -> None:
        compat.loss_scaler(self.zero).update(state)


class Zero12Engine(ZeroEngine):
    """ZeRO-1 and 2: each rank has the fp32 weights of one run of each flattened group."""

    @property
    def owned(self) -> list[Tensor]:
        """This rank's flat fp32 weights, one tensor a parameter group."""
        return compat.zero12_masters(self.zero)

    def find_piece(self, weight: nn.Parameter) -> Piece:
        """Return this rank's fragment of a parameter, which is often empty."""
        fragment = compat.zero12_fragment(weight)
        if fragment is None:
            empty, dtype = torch.empty(0, device=weight.device), weight.dtype
            return Piece(
                weight.shape, 0, 0, lambda: empty, lambda: empty.to(dtype), lambda: None, dict
            )
        offset, size = fragment.lp_fragment_address.start, fragment.lp_fragment_address.numel
        start = fragment.hp_fragment_address.start
        flat, optimizer = self.owned[fragment.param_group_index], self.torch_optimizer
        return Piece(
            weight.shape,
            offset,
            size,
            master=lambda: flat.detach().narrow(0, start, size),
            working=lambda: weight.detach().view(-1).narrow(0, offset, size),
            gradient=lambda: compat.zero12_gradient(weight),
            moments=lambda: _narrow_moments(optimizer, flat, start, size),
        )

    @torch.no_grad()
    def sync(self) -> None:
        compat.zero12_sync(self.zero)


class Zero3Engine(ZeroEngine):
    """ZeRO-3: an even share of each parameter."""

    @property
    def owned(self) -> list[Tensor]:
        """This rank's flat fp32 weights, one tensor a subgroup."""
        return compat.zero3_masters(self.zero)

    def find_piece(self, weight: nn.Parameter) -> Piece:
        """Return this rank's partition of a parameter, without its padding."""
        zero, optimizer = self.zero, self.torch_optimizer
        shape, offset, size = compat.zero3_partition(weight)
        slot = group, _, start = compat.zero3_slot(zero, weight)
        flat = self.owned[group]
        return Piece(
            shape,
            offset,
            size,
            master=lambda: flat.detach().narrow(0, start, size),
            working=lambda: compat.zero3_working(weight, size),
            gradient=lambda: compat.zero3_gradient(zero, *slot, size),
            moments=lambda: _narrow_moments(optimizer, flat, start, size),
        )

    @torch.no_grad()
    def sync(self) -> None:
        compat.zero3_sync(self.zero)


def _narrow_moments(
    optimizer: torch.optim.Optimizer, flat: Tensor, start: int, size: int
) -> dict[str, Tensor]:
    moments = moments_of(optimizer, flat)
    return {key: value.narrow(0, start, size) for key, value in moments.items()}


def prepare(
    accelerator: Accelerator,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    micro_batch: int,
    max_norm: float,
) -> Engine:
    """See `prepare_engine`. Raises BadInput if the stage is not 1, 2 or 3."""
    stage = compat.deepspeed_config(accelerator)["zero_optimization"]["stage"]
    if stage not in (1, 2, 3):
        raise BadInput(
            f"zero_stage {stage}: shards nothing; use accelerate_configs/multi_gpu_ddp.yaml"
        )
    engine = Zero3Engine if stage == 3 else Zero12Engine
    return engine(accelerator, model, optimizer, micro_batch, max_norm)


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise BadInput if the DeepSpeed configuration sets what a flag sets, or offloads to NVMe."""
    for key, flag in (("optimizer", "--optim"), ("scheduler", "--lr_scheduler_type")):
        if key in config:
            raise BadInput(f"deepspeed_config_file: has {key!r}, which {flag} sets; remove it")
    for part in ("offload_optimizer", "offload_param"):
        if config["zero_optimization"].get(part, {}).get("device") == "nvme":
            raise BadInput(f"{part}_device nvme: not supported; use cpu")

"""Every private API of other libraries that lth_scale relies on, one function each.

Each section names the versions that its functions were checked against, a docstring the upstream
issue, if any; tests/distributed/test_compat.py fails when a private name moves. Libraries are
imported inside the functions, so that the use of one does not wait for the others.
"""

import atexit
import logging
import os
from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs
    from datasets import Dataset
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils.tensor_fragment import tensor_fragment
    from mlflow import MlflowClient
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel


# Python 3.11 to 3.13


def run_exit_handlers() -> None:
    """Run the functions registered with `atexit`, without ending the process."""
    atexit._run_exitfuncs()


def parser_actions(parser: ArgumentParser) -> Iterator[Action]:
    """Yield the actions of a parser and of its subparsers."""
    for action in parser._actions:
        yield action
        if isinstance(action, _SubParsersAction):
            yield from chain(*map(parser_actions, action.choices.values()))


# torch 2.13


def default_store() -> "dist.Store":
    """Return the store of the default process group."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def cloned(store: "dist.Store") -> "dist.Store":
    """Return another connection to a store; torch does not document `Store.clone`."""
    return store.clone()  # type: ignore[attr-defined]


def uses_agent_store() -> bool:
    """Return whether the ranks share the launcher's store (`_create_c10d_store`).

    A restarted attempt then finds the keys of the last one: pytorch/pytorch#135712.
    """
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def has_bf16_instructions() -> bool:
    """Return whether this x86 CPU has AVX512_BF16 or AMX."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def extension_directory(name: str) -> Path:
    """Return the directory in which `torch.utils.cpp_extension` builds an extension."""
    from torch.utils import cpp_extension

    return Path(cpp_extension._get_build_directory(name, verbose=False))


# accelerate 1.15


def enable_fsdp_on_cpu(group: "InitProcessGroupKwargs") -> None:
    """Let Accelerate shard on gloo ranks.

    `AcceleratorState.__init__` reads the FSDP plugin under MULTI_GPU only, and would train the
    ranks separately under MULTI_CPU, without a warning.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True, **group.to_kwargs()).distributed_type = DistributedType.MULTI_GPU


@contextmanager
def one_root_group(model: "PreTrainedModel") -> Iterator[None]:
    """Keep embeddings and decoder in FSDP2's root group while `accelerator.prepare` runs.

    Accelerate shards the embeddings as a group of their own; the bias that BERT's decoder shares
    with its head stays in another, which torch 2.13 refuses: huggingface/accelerate#4171.
    """
    model.get_input_embeddings = model.get_output_embeddings = lambda: None  # type: ignore
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings


def set_fsdp_units(accelerator: "Accelerator", classes: list[str]) -> None:
    """Set the classes of modules that FSDP shards as units."""
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = classes


# transformers 5.23, datasets 5.2, huggingface_hub 2.4


def go_offline() -> None:
    """Let both libraries use only their caches from now on; they read HF_HUB_OFFLINE once."""
    import datasets
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def save_unwrapped(
    model: "PreTrainedModel", directory: Path, state_dict: Mapping[str, "Tensor"]
) -> None:
    """Call `model.save_pretrained` on a model that nothing wraps.

    Its `unwrap_model`, replaced here, goes through Accelerate, which imports DeepSpeed if it is
    installed: huggingface/transformers#29933.
    """
    from transformers import modeling_utils

    unwrap_model = modeling_utils.unwrap_model
    modeling_utils.unwrap_model = lambda model, recursive=False: model  # type: ignore
    try:
        model.save_pretrained(directory, state_dict=dict(state_dict))
    finally:
        modeling_utils.unwrap_model = unwrap_model


def commit_hash(config: "PreTrainedConfig") -> str:
    """Return the Hub commit that a configuration was read from, or ""."""
    return getattr(config, "_commit_hash", None) or ""


def clear_attention(config: "PreTrainedConfig") -> None:
    """Drop the attention kernels that config.json requests, which may be code from the Hub."""
    config._attn_implementation = None


def cached_checkpoint_file(path: str, name: str, revision: str) -> str | None:
    """Return a file of a checkpoint, downloaded if necessary, or None if there is none."""
    from transformers.utils import cached_file

    return cached_file(
        path,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def length_grouped_indices(lengths: Sequence[int], batch_size: int, generator: Any) -> list[int]:
    """Return shuffled row numbers of which each batch has similar lengths, as Trainer does."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    return get_length_grouped_indices(lengths, batch_size, generator=generator)


def fingerprint(rows: "Dataset") -> str:
    """Return the fingerprint under which `datasets` caches results computed from these rows."""
    return rows._fingerprint


# mlflow 3.17


def silence_database() -> None:
    """Turn off the retries of MLflow's database layer, and its logs of errors that it raises."""
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = 1
    utils._logger.setLevel(logging.CRITICAL)


def create_tables(client: "MlflowClient") -> None:
    """Create MLflow's tables in the client's local database, if they are missing.

    Closes the engine's connections first, because MLflow keeps those to a deleted file.
    """
    from mlflow.store.db import utils

    engine = client._tracking_client.store.engine
    engine.dispose()
    if not utils._all_tables_exist(engine):
        utils._initialize_tables(engine)


def import_store() -> None:
    """Import the store that MLflow imports at its first request.

    Called in the main thread: a fork in the middle of another thread's import can hang.
    """
    import mlflow.store.tracking.sqlalchemy_workspace_store  # noqa: F401


# matplotlib 3.11


def import_matplotlib() -> None:
    """Import Matplotlib with its own settings.

    The import fails if MPLBACKEND is unknown, or if the user's matplotlibrc is not UTF-8.
    """
    spec = find_spec("matplotlib")
    settings = Path(str(spec and spec.origin)).parent / "mpl-data/matplotlibrc"
    variables = {"MPLBACKEND": "agg", "MATPLOTLIBRC": str(settings)}
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ |= variables
    try:
        import matplotlib  # noqa: F401
    finally:
        for name in variables:
            del os.environ[name]
        os.environ |= before


# DeepSpeed 0.19.8


def deepspeed_config(accelerator: "Accelerator") -> dict[str, Any]:
    """Return the DeepSpeed configuration that `accelerator.prepare` will use, for editing."""
    return accelerator.deepspeed_plugin.deepspeed_config


def disable_op_builders() -> None:
    """Keep DeepSpeed from compiling a collective for inference on the CPU.

    `deepspeed.comm.torch` builds it if `ops.__compatible_ops__` has it (DeepSpeed#5391): this needs
    a minute and a compiler, and a killed build leaves a lock at which later runs hang.
    """
    from deepspeed import ops

    vars(ops)["__compatible_ops__"] = {}


def is_loss_scale_exhausted(error: Exception) -> bool:
    """Return whether this is the plain Exception of `DynamicLossScaler.update_scale`."""
    return "loss scale already at minimum" in str(error)


def loss_scaler(zero: "DeepSpeedZeroOptimizer") -> MutableMapping[str, Any]:
    """Return the live attributes of the loss scaler, which has no `state_dict`."""
    return vars(zero.loss_scaler)


def forget_linked_moments(zero: "DeepSpeedZeroOptimizer") -> None:
    """Let ZeRO link the fragments to new optimizer states at the next step.

    It links them once, and would keep cleared moments: deepspeedai/DeepSpeed#5615.
    """
    zero._hp_optimizer_states_linked = False


def offloaded_norms(zero: "DeepSpeedZeroOptimizer") -> "dict[int, Tensor] | None":
    """Return the live gradient norms by parameter id, or None without optimizer offload.

    The backward pass measures them and the step clips by them: both miss a change in between.
    """
    return getattr(zero, "norm_for_param_grads", None)


def zero12_fragment(weight: "nn.Parameter") -> "tensor_fragment | None":
    """Return ZeRO-1 and 2's link to the fragment of a weight on this rank, or None."""
    return weight._hp_mapping  # type: ignore[attr-defined]


def zero12_gradient(weight: "nn.Parameter") -> "Tensor | None":
    """Return the gradient fragment that ZeRO-1 and 2's next step reads, or None."""
    param: Any = weight
    with suppress(ValueError):  # there is no gradient yet
        return param._hp_mapping.get_lp_grad_fragment(param._index_in_param_group).view(-1)
    return None


def zero12_masters(zero: "DeepSpeedZeroOptimizer") -> "list[Tensor]":
    """Return this rank's flat fp32 weights under ZeRO-1 and 2, one tensor a parameter group."""
    return zero.single_partition_of_fp32_groups


def zero12_sync(zero: "DeepSpeedZeroOptimizer") -> None:
    """Copy the fp32 weights into the model's and gather them. DeepSpeed#6411."""
    zero.update_lp_params()


def zero3_masters(zero: "DeepSpeedZeroOptimizer_Stage3") -> "list[Tensor]":
    """Return this rank's flat fp32 weights under ZeRO-3, one tensor a subgroup."""
    return zero.fp32_partitioned_groups_flat


def zero3_slot(
    zero: "DeepSpeedZeroOptimizer_Stage3", weight: "nn.Parameter"
) -> tuple[int, int, int]:
    """Return the subgroup of a weight, its index there, and its start in the flat fp32 tensor."""
    group, start, _ = zero.grad_position[zero.get_param_id(weight)]
    index = next(i for i, other in enumerate(zero.fp16_groups[group]) if other is weight)
    return group, index, start


def zero3_partition(weight: "nn.Parameter") -> "tuple[torch.Size, int, int]":
    """Return the shape of a whole weight, and the offset and size of this rank's partition.

    Partitions are of equal size; the last ones are padded with uninitialised memory.
    """
    import torch.distributed as dist

    param: Any = weight
    offset = min(param.partition_numel() * dist.get_rank(param.ds_process_group), param.ds_numel)
    return param.ds_shape, offset, min(param.partition_numel(), param.ds_numel - offset)


def zero3_working(weight: "nn.Parameter", size: int) -> "Tensor":
    """Return a view of this rank's partition of the weight that the forward pass gathers."""
    return weight.ds_tensor.detach().view(-1).narrow(0, 0, size)  # type: ignore[attr-defined]


def zero3_gradient(
    zero: "DeepSpeedZeroOptimizer_Stage3", group: int, index: int, start: int, size: int
) -> "Tensor | None":
    """Return the gradient that ZeRO-3's next step reads, or None. Arguments of `zero3_slot`."""
    if zero.offload_optimizer:
        flat = zero.fp32_partitioned_groups_flat[group].grad
        return None if flat is None else flat.narrow(0, start, size)
    averaged = zero.averaged_gradients.get(group)
    return None if averaged is None else averaged[index].view(-1).narrow(0, 0, size)


def zero3_sync(zero: "DeepSpeedZeroOptimizer_Stage3") -> None:
    """Copy the fp32 weights into the model's partitions, as at the end of ZeRO-3's own step."""
    zero.checkpoint_event_prologue()
    for group in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    zero.checkpoint_event_epilogue()

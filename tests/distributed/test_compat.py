"""Every private API in compat.py exists and does what lth_scale relies on.

Most names of DeepSpeed only exist on real ranks, where test_engines.py uses them; here its sources
must still contain them, so that an upgrade that moves one fails in seconds.
"""

import argparse
import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf

import lth_scale
from lth_scale.distributed import compat

PACKAGE = Path(lth_scale.__file__).parent
# public in spite of their underscores, or the type of an annotation
PUBLIC = {"_replace", "_exit", "_ActionsContainer"}


def run(code: str, **variables: str) -> str:
    """What a program in a process of its own prints."""
    environment = {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def bert() -> hf.BertModel:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    return hf.BertModel(hf.BertConfig(vocab_size=9, num_hidden_layers=1, **sizes))


def private_names(tree: ast.AST) -> set[str]:
    """The private attributes and modules that a file names."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            paths = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            names |= {part for path in paths for part in path.split(".")}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def defined_names(tree: ast.AST) -> set[str]:
    """The private names that a file defines."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def test_no_other_file_uses_a_private_api_or_mock():
    trees = {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    own = set().union(*map(defined_names, trees.values()))
    for path, tree in trees.items():
        assert "unittest" not in path.read_text("utf-8"), path
        if path != Path(compat.__file__):
            assert not private_names(tree) - own - PUBLIC, path


def test_importing_compat_imports_no_library():
    libraries = "{'torch', 'transformers', 'mlflow', 'deepspeed', 'datasets'}"
    code = f"import sys, lth_scale.distributed.compat; print({libraries} & sys.modules.keys())"
    assert run(code) == "set()"


# Python


def test_the_exit_handlers_run_and_the_process_goes_on():
    code = "import atexit; from lth_scale.distributed import compat; atexit.register(print, 'a')"
    assert run(f"{code}; compat.run_exit_handlers(); print('b')").split() == ["a", "b"]


def test_the_actions_of_subparsers_are_listed():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--one")
    parser.add_subparsers().add_parser("verb", add_help=False).add_argument("--two")
    assert {"one", "two"} <= {action.dest for action in compat.parser_actions(parser)}


# torch

STORE = """
import torch.distributed as dist
from lth_scale.distributed import compat
store = dist.TCPStore("127.0.0.1", 0, 1, True)
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
compat.cloned(compat.default_store()).set("key", "value")
print(compat.default_store().get("key").decode())
"""


def test_the_default_store_has_a_second_connection():
    assert run(STORE) == "value"


def test_a_shared_store_is_recognised_by_the_launchers_variable(monkeypatch):
    source = Path(torch.distributed.__file__).with_name("rendezvous.py").read_text()
    assert "TORCHELASTIC_USE_AGENT_STORE" in source
    assert not compat.uses_agent_store()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert compat.uses_agent_store()


def test_the_cpu_says_whether_it_has_bf16_instructions():
    assert isinstance(compat.has_bf16_instructions(), bool)


def test_extensions_are_built_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert compat.extension_directory("name") == tmp_path / "name"


# accelerate


def test_accelerate_reads_the_fsdp_plugin_under_multi_gpu():
    from accelerate.state import AcceleratorState, PartialState

    source = inspect.getsource(AcceleratorState.__init__)
    before, fsdp, _ = source.partition("ACCELERATE_USE_FSDP")
    assert fsdp and "DistributedType.MULTI_GPU" in before
    assert "self.distributed_type = " in inspect.getsource(PartialState.__init__)


def test_the_embeddings_are_hidden_while_a_model_is_prepared(bert):
    from accelerate.utils import fsdp_utils

    assert "get_input_embeddings" in inspect.getsource(fsdp_utils.fsdp2_prepare_model)
    with compat.one_root_group(bert):
        assert bert.get_input_embeddings() is None is bert.get_output_embeddings()
    assert bert.get_input_embeddings() is bert.embeddings.word_embeddings


def test_the_plugins_have_the_attributes_that_are_set():
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

    assert (
        "transformer_cls_names_to_wrap"
        in inspect.signature(FullyShardedDataParallelPlugin).parameters
    )
    assert isinstance(Accelerator.deepspeed_plugin, property)
    assert "self.deepspeed_config" in inspect.getsource(DeepSpeedPlugin)


# transformers, datasets

SAVE = """
import sys
import torch, transformers as hf
from pathlib import Path
from lth_scale.distributed import compat
sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
config = hf.BertConfig(vocab_size=9, num_hidden_layers=1, **sizes)
weights = hf.BertModel(config).state_dict()
with torch.device("meta"):
    model = hf.BertModel(config)
unwrap_model = hf.modeling_utils.unwrap_model
compat.save_unwrapped(model, Path("model"), weights)
assert hf.modeling_utils.unwrap_model is unwrap_model
saved = hf.BertModel.from_pretrained("model").state_dict()
assert all(torch.equal(saved[name], weight) for name, weight in weights.items())
print("deepspeed" in sys.modules)
"""


def test_a_model_on_the_meta_device_is_saved_without_deepspeed(tmp_path):
    assert run(f"import os; os.chdir({str(tmp_path)!r})\n{SAVE}") == "False"
    assert "unwrap_model(self)" in inspect.getsource(hf.PreTrainedModel.save_pretrained)


def test_a_configuration_has_a_commit_and_an_attention_kernel(bert):
    assert compat.commit_hash(bert.config) == ""
    bert.config._commit_hash = "abc"
    assert compat.commit_hash(bert.config) == "abc"
    assert "_commit_hash" in inspect.getsource(sys.modules[hf.PreTrainedConfig.__module__])
    config = hf.BertConfig(attn_implementation="eager")
    assert config._attn_implementation == "eager"
    compat.clear_attention(config)
    assert config._attn_implementation is None


def test_a_missing_file_of_a_checkpoint_is_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert compat.cached_checkpoint_file(str(tmp_path), "other", "main") is None
    file = compat.cached_checkpoint_file(str(tmp_path), "config.json", "main")
    assert file == str(tmp_path / "config.json")


def test_rows_are_grouped_by_length():
    generator = torch.Generator().manual_seed(0)
    indices = compat.length_grouped_indices([3, 1, 2, 9, 8, 7], 2, generator)
    assert sorted(indices) == [*range(6)]
    assert indices == compat.length_grouped_indices(
        [3, 1, 2, 9, 8, 7], 2, torch.Generator().manual_seed(0)
    )


def test_a_fingerprint_depends_on_the_rows():
    from datasets import Dataset

    rows = Dataset.from_dict({"a": [1, 2]})
    assert compat.fingerprint(rows) != compat.fingerprint(rows.select([0]))


def test_the_libraries_go_offline(monkeypatch):
    import datasets
    from huggingface_hub import constants, is_offline_mode

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    compat.go_offline()
    assert is_offline_mode() and datasets.config.HF_HUB_OFFLINE


# mlflow


def test_mlflow_creates_its_tables_once_and_silently(tmp_path):
    from mlflow import MlflowClient
    from mlflow.store.db import utils

    assert utils.MAX_RETRY_COUNT and utils._logger
    compat.import_store()
    compat.silence_database()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    for _ in range(2):
        compat.create_tables(client)
    assert utils._all_tables_exist(client._tracking_client.store.engine)
    assert "MAX_RETRY_COUNT" in inspect.getsource(utils)


# matplotlib


def test_matplotlib_is_imported_whatever_the_settings_say():
    code = "import os; from lth_scale.distributed import compat; compat.import_matplotlib()"
    code += "; import matplotlib; print(matplotlib.get_backend(), os.environ['MPLBACKEND'])"
    assert run(code, MPLBACKEND="nonsense").lower().split() == ["agg", "nonsense"]


# DeepSpeed

DEEPSPEED = {
    "runtime.zero.stage_1_and_2": (
        "self.single_partition_of_fp32_groups = ",
        "self._hp_optimizer_states_linked = False",
        "if not self._hp_optimizer_states_linked",
        "self.norm_for_param_grads[",
        "def get_param_id(self, param)",
        "def update_lp_params(self)",
        "self.loss_scaler",
    ),
    "runtime.zero.stage3": (
        "self.fp32_partitioned_groups_flat = ",
        "self.fp16_groups = ",
        "self.grad_position[param_id] = [int(i), int(current_offset), int(num_elements)]",
        "self.averaged_gradients[",
        "self.norm_for_param_grads[",
        "def get_param_id(self, param)",
        "def checkpoint_event_prologue(self)",
        "def checkpoint_event_epilogue(self)",
        "def _reassign_or_swap_out_partitioned_parameters(self, sub_group_id)",
        "self.offload_optimizer",
    ),
    "runtime.zero.partition_parameters": (
        "param.ds_shape = ",
        "param.ds_numel = ",
        "param.ds_tensor = ",
        "param.ds_process_group = ",
        "param.partition_numel = ",
    ),
    "utils.mixed_precision_linkage": ("._hp_mapping = ", "._index_in_param_group = "),
    "utils.tensor_fragment": (
        "def get_lp_grad_fragment(self, index_in_param_group)",
        "lp_fragment_address: ",
        "hp_fragment_address: ",
        "param_group_index: int",
    ),
    "runtime.fp16.loss_scaler": ("loss scale already at minimum", "self.cur_scale = "),
    "runtime.engine": (
        "def set_gradient_accumulation_boundary(self, is_boundary)",
        "def get_global_grad_norm(self)",
    ),
    "ops": ("__compatible_ops__",),
    "comm.torch": ("deepspeed.ops.__compatible_ops__",),
}


@pytest.mark.parametrize("module", DEEPSPEED)
def test_deepspeed_has_the_names_that_the_zero_engines_use(module):
    root = Path(pytest.importorskip("deepspeed").__file__).parent / module.replace(".", "/")
    file = root / "__init__.py" if root.is_dir() else root.with_suffix(".py")
    source = file.read_text()
    assert not [name for name in DEEPSPEED[module] if name not in source]


def test_deepspeed_builds_no_operators():
    code = "from lth_scale.distributed import compat; compat.disable_op_builders()"
    code += "; import deepspeed; print(deepspeed.ops.__compatible_ops__)"
    pytest.importorskip("deepspeed")
    assert run(code, DS_ACCELERATOR="cpu") == "{}"


def test_the_attributes_of_deepspeeds_loss_scaler_are_live():
    loss_scaler = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler")

    scaler = loss_scaler.DynamicLossScaler(
        4.0, scale_window=10, min_scale=2.0, delayed_shift=1, consecutive_hysteresis=False
    )
    zero = SimpleNamespace(loss_scaler=scaler)
    compat.loss_scaler(zero)["cur_scale"] = 2.0
    assert scaler.cur_scale == 2.0
    with pytest.raises(Exception, match="minimum") as problem:
        scaler.update_scale(True)
    assert compat.is_loss_scale_exhausted(problem.value)

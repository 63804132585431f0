"""Tiny real models and data, made on the spot: nothing here needs a network or a download."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny products are fastest on one thread

from lth_scale.tasks.locations import embedded_path


def pytest_configure(config):
    """Compile extensions once per run: all workers inherit the directory."""
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        os.environ["TORCH_EXTENSIONS_DIR"] = tempfile.mkdtemp(prefix="torch-extensions-")
        config.add_cleanup(
            lambda: shutil.rmtree(os.environ["TORCH_EXTENSIONS_DIR"], ignore_errors=True)
        )


@pytest.fixture(autouse=True)
def restored_threads():
    """A test that changes the number of PyTorch's threads leaves it to no later one."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_addoption(parser):
    parser.addoption(
        "--machine",
        action="store_true",
        help="also run what needs root, system packages or a minute",
    )


# Of minutes, so that none ends alone; beside the sharded ranks' what often waits, and no other
# launches of many ranks.
FIRST = [
    "test_engines",
    "test_mlflow",
    "test_hub",
    "test_commands",
    "test_launch",
    "test_mlflow_ui",
    "test_checkpoints",
    "test_export",
    "test_watchdog",
]


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: [*FIRST, item.path.stem].index(item.path.stem))
    for item in items:
        if item.get_closest_marker("machine") and not config.getoption("--machine"):
            item.add_marker(
                pytest.mark.skip(reason="needs root, system packages or a minute: give --machine")
            )


SENTENCE = "the cat sat on a mat and saw one good dog run far from its old bad house by the sea"
WORDS = SENTENCE.split()


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_path("bert"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, tokenizer) -> Path:
    """A BertForMaskedLM directory: 2 layers, hidden 16, random weights, the embedded vocabulary."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("tiny_bert")
    BertForMaskedLM(BertConfig(**SIZES, vocab_size=len(tokenizer))).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def other_bert(tiny_bert, tmp_path_factory) -> Path:
    """The directory of a network like `tiny_bert`, name by name and shape by shape, with other
    weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("other_bert")
    shutil.copytree(tiny_bert, directory, dirs_exist_ok=True)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(tiny_bert)).save_pretrained(
        directory
    )
    return directory


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


def sentence(i: int) -> str:
    """A sentence of 5 to 12 words that depends on i alone."""
    return " ".join(WORDS[(i * 7 + j * (i % 5 + 1)) % len(WORDS)] for j in range(5 + i % 8))


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def sst2_data(tmp_path_factory) -> Path:
    """train.jsonl (64 rows) and validation.jsonl (20 rows) in SST-2's columns."""
    directory = tmp_path_factory.mktemp("sst2")
    for split, count in (("train", 64), ("validation", 20)):
        rows = [
            {"idx": i, "sentence": sentence(i), "label": int("good" in sentence(i))}
            for i in range(count)
        ]
        write_jsonl(directory / f"{split}.jsonl", rows)
    return directory


@pytest.fixture(scope="session")
def text_data(tmp_path_factory) -> Path:
    """train.jsonl and validation.jsonl with a `text` column, for some blocks of 32 tokens."""
    directory = tmp_path_factory.mktemp("text")
    for split, count in (("train", 120), ("validation", 30)):
        write_jsonl(directory / f"{split}.jsonl", [{"text": sentence(i)} for i in range(count)])
    return directory


@pytest.fixture
def small(tiny_bert, sst2_data, tmp_path):
    """Flags of a search on the tiny model that takes a second; keyword arguments override or add
    flags.
    """

    def flags(**overrides) -> list[str]:
        values = {
            "task": "sst2",
            "model_name_or_path": tiny_bert,
            "dataset_path": sst2_data,
            "output_dir": tmp_path / "out",
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "max_seq_length": 32,
            "learning_rate": 0.01,
            "target_sparsity": 0.3,
            "report_to": "none",
            **overrides,
        }
        return [
            part
            for name, value in values.items()
            if value is not None
            for part in (
                f"--{name}",
                *map(str, [] if value is True else value if isinstance(value, list) else [value]),
            )
        ]

    return flags


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures of nothing, where a test does not look at them: to draw two takes as long as a small
    search.
    """
    from PIL import Image

    from lth_scale.science import figures

    Image.new("L", (8, 8)).save(buffer := io.BytesIO(), "png")
    monkeypatch.setattr(figures, "_arranged", lambda figure: figure)
    monkeypatch.setattr(figures, "render", lambda figure, format: buffer.getvalue())


@pytest.fixture
def search(small, undrawn):
    """Run a search in this process and return its output directory."""
    from accelerate.state import AcceleratorState

    from lth_scale import imp
    from lth_scale.config.resolution import parse

    def go(**overrides) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)  # one process, many searches
        args = parse(small(**overrides))
        imp.run(args)
        return Path(args.output_dir)

    return go


@pytest.fixture
def transfer(small, tmp_path):
    """Run a transfer in this process and return its output directory."""
    from accelerate.state import AcceleratorState

    from lth_scale import transfer
    from lth_scale.config.arguments import Transfer
    from lth_scale.config.resolution import parse

    def go(*seeds: int, **overrides) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        given = {"target_sparsity": None, "output_dir": tmp_path / "transfer", **overrides}
        flags = [*small(**given), "--seeds", *map(str, seeds or (42,))]
        args = parse(flags, Transfer)
        transfer.run(args)
        return Path(args.output_dir)

    return go


@pytest.fixture
def command():
    """Run `python -m MODULE FLAGS…` in a process of its own."""

    def go(module: str, *flags: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", module, *flags],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
        )

    return go


class MlflowServer:
    """`mlflow server` on a port of its own, which can be down, stopped or killed."""

    def __init__(self, directory: Path, store: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.directory, self.store, self.process = directory, store, None

    def start(self):
        """Start the server and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--port", str(self.port), "--backend-store-uri", self.store]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_TRACKING_URI": ""}
        with open(self.directory / "server.log", "a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
                process_group=0,
            )
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                return urlopen(f"{self.url}/health", timeout=5).read()
            except OSError:
                time.sleep(0.1)
        raise TimeoutError((self.directory / "server.log").read_text())

    def signal(self, number: int):
        """Send a signal to the processes of the server, and wait for their end if it kills."""
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def mlflow_server():
    """Create an `mlflow server` for a store, to be started; it is killed at the end."""
    servers = []

    def create(directory: Path, store: str) -> MlflowServer:
        servers.append(MlflowServer(directory, store))
        return servers[-1]

    yield create
    for server in servers:
        if server.process:
            server.signal(signal.SIGKILL)

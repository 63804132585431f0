"""The command in the first line of each file in accelerate_configs/, on gloo ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lth_scale import Ticket

SHORT = [
    *("--preset", "demo", "--max_steps", "2", "--target_sparsity", "0.3"),
    *("--max_train_samples", "64", "--max_eval_samples", "16"),
]


def stamps(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


CONFIGS = sorted((Path(__file__).parents[2] / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_of_a_config_is_a_command_that_uses_it(config):
    line = config.read_text().splitlines()[0]
    assert line.startswith("# run: ") and f"--config_file accelerate_configs/{config.name} " in line
    after = line.split(" -m lth_scale.imp ")[1].split()
    assert resolve_flags(after).output_dir == f"runs/{config.stem}"


def resolve_flags(flags: list[str]):
    from lth_scale.config.resolution import parse

    return parse(flags)


def run_line(config: str, *flags: str, processes: int | None = None) -> subprocess.CompletedProcess:
    """Run the command in a config's first line with more flags, on `processes` if given."""
    root = Path(__file__).parents[2]
    text = (root / "accelerate_configs" / f"{config}.yaml").read_text()
    line = text.splitlines()[0].removeprefix("# run: ")
    line = line.replace("launch", f"launch --num_processes {processes}", 1) if processes else line
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        ["sh", "-c", f'{line} "$@"', "sh", *flags],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


ONE_SHOT = ["--task", "sst2", *SHORT, "--max_steps", "0"]


@pytest.fixture(scope="module")
def one_shot(tmp_path_factory) -> bytes:
    """The one-shot ticket of one process without a launcher."""
    out = tmp_path_factory.mktemp("one") / "out"
    done = run_line("single_cpu", *ONE_SHOT, "--report_to", "none", "--output_dir", str(out))
    assert done.returncode == 0, done.stderr
    return (out / "ticket.safetensors").read_bytes()


def test_two_ranks_find_the_ticket_of_one_once_and_refuse_other_flags(one_shot, tmp_path):
    out = tmp_path / "runs/two"
    flags = [*ONE_SHOT, "--output_dir", str(out)]
    done = run_line("multi_cpu", *flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "results.json").read_text())
    assert [round(row["sparsity"], 3) for row in rows] == [0, 0.1, 0.2, 0.3]
    assert Ticket.load(out / "ticket.safetensors").pruned == rows[-1]["pruned"]
    assert (out / "ticket.safetensors").read_bytes() == one_shot
    assert done.stdout.count("| round |") == 1  # one process prints
    assert str(out) in done.stdout and "mlflow ui" in done.stdout
    assert "random_mask 03" in done.stderr and "\x1b[" not in done.stderr

    before = stamps(tmp_path)
    again = run_line("multi_cpu", *flags)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert stamps(tmp_path) == before

    other = run_line("multi_cpu", *flags, "--seed", "7")
    assert other.returncode != 0
    assert other.stderr.count("error: --output_dir") == 1 and "--seed was 42, is 7" in other.stderr
    assert stamps(tmp_path) == before


def test_zero1_differs_from_zero2_only_in_its_stage():
    """So that one of them is launched below; test_engines.py trains both."""
    paths = [path for path in CONFIGS if path.stem in ("zero1", "zero2")]
    one, two = (yaml.safe_load(path.read_text()) for path in paths)
    assert one.pop("deepspeed_config") == two.pop("deepspeed_config") | {"zero_stage": 1}
    assert one == two


@pytest.mark.parametrize("config", ["zero2", "zero3_offload", "fsdp2"])
def test_a_ticket_depends_on_neither_engine_nor_precision(config, one_shot, tmp_path):
    done = run_line(config, *ONE_SHOT, "--report_to", "none", "--output_dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/ticket.safetensors").read_bytes() == one_shot


def test_fp16_is_refused_if_the_cpu_has_none(tmp_path):
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().is_fp16_supported():
        pytest.skip("this machine has fp16")
    done = run_line("zero2_fp16", *ONE_SHOT, "--output_dir", str(tmp_path / "out"), processes=1)
    assert done.returncode != 0 and done.stderr.count("error: ") == 1
    assert "fp16 is not supported" in done.stderr and not (tmp_path / "out").exists()


def test_unconnected_processes_are_refused(tmp_path):
    """`--multi_gpu` without ACCELERATE_USE_CPU gives two ranks 0 of 1 if there is no GPU."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("the launch is valid with a GPU")
    flags = ["--task", "sst2", *SHORT, "--output_dir", str(tmp_path / "o")]
    done = subprocess.run(
        [sys.executable, "-m", "lth_scale.imp", *flags],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "0"},
    )
    assert done.returncode == 2 and "ACCELERATE_USE_CPU=true" in done.stderr
    assert not (tmp_path / "o/arguments.json").exists()

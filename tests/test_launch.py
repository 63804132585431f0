"""The real command through `accelerate launch`, with one and with two gloo processes, on the demo preset."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lth_scale import Ticket

ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch"]
PROCESSES = {
    1: ["--num_processes", "1"],
    2: ["--multi_gpu", "--num_processes", "2"],
}
SHORT = [
    "--preset", "demo", "--max_steps", "2", "--max_train_samples", "64", "--max_eval_samples", "16",
    "--target_sparsity", "0.3",
]  # fmt: skip


def launch(processes: int, *flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        [*ACCELERATE, *PROCESSES[processes], "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "-m", "lth_scale.imp", *flags],
        capture_output=True, text=True, timeout=400, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def stamps(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_search_runs_is_not_run_twice_and_is_not_mixed_with_another(processes, tmp_path):
    out = tmp_path / "runs/mlm"
    flags = ["--task", "mlm", *SHORT, "--output_dir", str(out)]
    done = launch(processes, *flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "results.json").read_text())
    assert [round(row["sparsity"], 3) for row in rows] == [0, 0.1, 0.2, 0.3]
    assert [row["steps"] for row in rows] == [2] * 4
    assert Ticket.load(out / "ticket.safetensors").pruned == rows[-1]["pruned"]
    assert done.stdout.count("| round |") == 1  # one process speaks
    assert str(out) in done.stdout and "mlflow ui" in done.stdout
    assert "random_mask 03" in done.stderr and "\x1b[" not in done.stderr

    before = stamps(tmp_path)
    again = launch(processes, *flags)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert stamps(tmp_path) == before

    other = launch(processes, *flags, "--seed", "7")
    assert other.returncode != 0
    assert other.stderr.count("error: --output_dir") == 1 and "--seed was 42, is 7" in other.stderr
    assert stamps(tmp_path) == before


def test_ranks_do_not_change_the_one_shot_ticket(tmp_path):
    tickets = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = launch(
            processes, "--task", "sst2", *SHORT, "--max_steps", "0", "--report_to", "none", "--output_dir", str(out)
        )
        assert done.returncode == 0, done.stderr
        tickets.append((out / "ticket.safetensors").read_bytes())
    assert tickets[0] == tickets[1]


def test_processes_that_do_not_know_each_other_are_refused(tmp_path):
    """`--multi_gpu` without ACCELERATE_USE_CPU on a machine without GPUs gives two ranks 0 of 1."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("with a GPU the launch is right")
    done = subprocess.run(
        [sys.executable, "-m", "lth_scale.imp", "--task", "sst2", *SHORT, "--output_dir", str(tmp_path / "o")],
        capture_output=True, text=True, timeout=100, env={**os.environ, "WORLD_SIZE": "2", "RANK": "0"},
    )  # fmt: skip
    assert done.returncode == 2 and "ACCELERATE_USE_CPU=true" in done.stderr
    assert not (tmp_path / "o/arguments.json").exists()

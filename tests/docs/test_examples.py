"""The example of 20 lines does what it says, and pushes to a Hub where it is given a repository."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

from hub_server import environment, serving

from lth_scale import Ticket

EXAMPLE = Path(__file__).parents[2] / "examples/ticket_in_20_lines.py"


def test_the_example_finds_inspects_applies_and_pushes_a_ticket_in_20_lines(tmp_path):
    with serving() as hub:
        done = subprocess.run(
            [sys.executable, EXAMPLE, "writer/twenty"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
            env=os.environ | environment(hub, tmp_path / "home"),
        )
        assert done.returncode == 0, done.stderr
        files = hub.files("writer/twenty")
    pushed = tmp_path / "pushed.safetensors"
    pushed.write_bytes(files["ticket.safetensors"])
    assert (
        Ticket.load(pushed).sparsity
        == Ticket.load(tmp_path / "runs/twenty-lines/ticket.safetensors").sparsity
    )
    assert "README.md" in files and json.loads(files["config.json"])["architectures"] == [
        "BertForMaskedLM"
    ]
    assert (
        "70.0% of 786,432 weights are pruned" in done.stdout
        and "keeps 100% of what it keeps" in done.stdout
    )


def test_the_example_has_20_lines_of_code_and_imports():
    statements = ast.parse(EXAMPLE.read_text(encoding="utf-8")).body[1:]  # without the docstring
    assert (
        len(
            {line for each in statements for line in range(each.lineno, (each.end_lineno or 0) + 1)}
        )
        <= 20
    )

"""Searches that are killed at random and at chosen moments find what they would have found."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.machine
def test_five_kills():
    command = [sys.executable, "-m", "tests.chaos", "--kills", "5", "--seed", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "| all | | 5 | 5 | 5 |"

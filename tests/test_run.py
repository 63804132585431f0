"""run: what the suite itself can be relied on for."""

import re
import subprocess
import sys
from pathlib import Path

DIES = """
import os, time

def test_it():
    time.sleep(2)
    os.kill(os.getpid(), 9)
"""
LIVES = "def test_it(): pass\ndef test_that(): pass\n"


def test_a_worker_of_the_suite_that_dies_ends_it_with_the_test_s_name(tmp_path):
    """Else xdist starts another worker, and where the others have left already it waits for ever."""
    run = (Path(__file__).parent.parent / "run").read_text()
    flags = re.search(r'-m pytest (.*?) "\$@"', run, re.DOTALL)[1].replace("\\\n", "").split()
    for name, content in {"a": LIVES, "b": LIVES, "dies": DIES}.items():
        (tmp_path / f"test_{name}.py").write_text(content)
    command = [sys.executable, "-m", "pytest", *flags, "-n", "2", "-p", "no:cacheprovider", "--rootdir", tmp_path]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and re.search(r"crashed while running '.*test_dies.py::test_it'", done.stdout)

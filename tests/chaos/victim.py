"""A command that kills itself at the n-th occurrence of a chosen moment.

`CHAOS='after a rename:3:0' python -m tests.chaos.victim lth_scale.imp FLAGS…`

The three parts of CHAOS are the moment, n and the rank.
"""

import functools
import importlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

TERMINATED = "asked to stop in a step"
CALLS = ("a rename", "an MLflow call", "a Hub request")
MOMENTS = (
    *("in a step", TERMINATED, "between threshold and rewind", "in a measurement", "in a deletion"),
    *("with half a file written", "with half a checkpoint written"),
    *(f"{when} {call}" for call in CALLS for when in ("before", "after")),
)


def die() -> None:
    """Die like a machine that is switched off: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    """Ask this process to stop, as a cluster does."""
    os.kill(os.getpid(), signal.SIGTERM)


class Trap:
    """Counts each moment, and dies at the n-th occurrence of one."""

    def __init__(self, moment: str, n: int):
        self.moment, self.n, self.seen = moment, n, Counter()

    def at(self, moment: str) -> bool:
        self.seen[moment] += 1
        return moment == self.moment and self.seen[moment] == self.n

    def around(
        self, owner, name: str, before: str, after: str = "", end: Callable[[], None] = die
    ) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def watched(*args, **options):
            if before and self.at(before):
                end()
            given = inner(*args, **options)
            if after and self.at(after):
                end()
            return given

        setattr(owner, name, watched)

    def half_written(self, owner, name: str, moment: str, path_of) -> None:
        """Die with half of a file on disk, before it is moved into place."""
        inner = getattr(owner, name)

        def watched(*args, **options):
            given, path = inner(*args, **options), os.path.realpath(path_of(*args))
            if os.path.isfile(path) and ".tmp" in path and self.at(moment):
                os.truncate(path, os.stat(path).st_size // 2)
                die()
            return given

        setattr(owner, name, watched)

    def half_deleted(self, home: str) -> None:
        """Die once a file below `home` is deleted."""
        inner = os.unlink

        def watched(path, *args, dir_fd=None):
            where = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else os.getcwd()
            inner(path, *args, dir_fd=dir_fd)
            if os.path.join(where, os.fspath(path)).startswith(home) and self.at("in a deletion"):
                die()

        os.unlink = watched


def arm(moment: str, n: int, home: str) -> Trap:
    """Set a trap in this process."""
    from huggingface_hub import get_session
    from mlflow import MlflowClient

    from lth_scale.shipping.speed import timing
    from lth_scale.training import checkpoints, loop, search

    trap = Trap(moment, n)
    trap.around(loop, "step_optimizer", TERMINATED, end=terminate)
    trap.around(loop, "step_optimizer", "in a step")
    trap.around(timing, "largest_difference", "in a measurement")
    trap.half_written(
        os, "fsync", "with half a file written", lambda handle: f"/proc/self/fd/{handle}"
    )
    trap.around(os, "replace", "before a rename", "after a rename")
    trap.around(os, "rename", "before a rename", "after a rename")
    trap.half_written(
        checkpoints, "save_file", "with half a checkpoint written", lambda tensors, path, *_: path
    )
    trap.around(search.Search, "complete", "between threshold and rewind")
    trap.half_deleted(home)
    for call in (
        *("create_run", "log_batch", "set_terminated", "update_run", "delete_run"),
        *("log_artifacts", "log_artifact", "set_tag"),
    ):
        trap.around(MlflowClient, call, "before an MLflow call", "after an MLflow call")
    trap.around(type(get_session()), "send", "before a Hub request", "after a Hub request")
    return trap


def set_clock(seconds: float) -> None:
    """Shift the time of day by some seconds."""
    true = time.time
    time.time = lambda: true() + seconds


def main() -> None:
    """Run a command with the trap of CHAOS, below CHAOS_HOME.

    CHAOS_CLOCK: seconds by which the clock is shifted. CHAOS_COUNTS: a directory for the counts.
    """
    from lth_scale.config.exit_codes import exit_on_bad_input

    command = importlib.import_module(sys.argv.pop(1))
    moment, n, rank = os.environ["CHAOS"].split(":")
    set_clock(float(os.environ.get("CHAOS_CLOCK", 0)))
    armed = moment if rank == os.environ.get("RANK", "0") else ""
    trap, began = arm(armed, int(n), os.environ["CHAOS_HOME"]), time.monotonic()

    def counted() -> None:
        command.main()
        if "CHAOS_COUNTS" in os.environ:
            known = [name for name in sys.modules if not name.startswith(("__", "tests"))]
            noted = {"seen": trap.seen, "modules": known, "seconds": time.monotonic() - began}
            Path(os.environ["CHAOS_COUNTS"], f"{os.getpid()}.json").write_text(json.dumps(noted))

    exit_on_bad_input(counted)


if __name__ == "__main__":
    main()

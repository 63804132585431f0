"""A search that kills itself, for real, at a chosen moment: the n-th time that it gets there.

`CHAOS='after a rename:3:0' python -m tests.chaos.victim FLAGS…`       (moment, n, rank)
"""

import functools
import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path


def die() -> None:
    """As a machine that is switched off: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


class Trap:
    """Counts each moment, and dies at the n-th of one."""

    def __init__(self, moment: str, n: int):
        self.moment, self.n, self.seen = moment, n, Counter()

    def at(self, moment: str) -> bool:
        self.seen[moment] += 1
        return moment == self.moment and self.seen[moment] == self.n

    def around(self, owner, name: str, before: str, after: str = "") -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def watched(*args, **options):
            if before and self.at(before):
                die()
            given = inner(*args, **options)
            if after and self.at(after):
                die()
            return given

        setattr(owner, name, watched)

    def half_written(self, owner, name: str, moment: str, path_of) -> None:
        """Die with half of a file on disk."""
        inner = getattr(owner, name)

        def watched(*args, **options):
            given, path = inner(*args, **options), os.path.realpath(path_of(*args))
            if os.path.isfile(path) and ".tmp" in path and self.at(moment):  # no kill shortens what is in its place
                os.truncate(path, os.stat(path).st_size // 2)
                die()
            return given

        setattr(owner, name, watched)

    def half_deleted(self) -> None:
        inner = shutil.rmtree

        def watched(path, *args, **options):
            files = [file for file in Path(path).rglob("*") if file.is_file()]
            if files and self.at("in a deletion"):
                files[0].unlink()
                die()
            return inner(path, *args, **options)

        shutil.rmtree = watched


MOMENTS = (
    "in a step", "with half a file written", "before a rename", "after a rename", "with half a checkpoint written",
    "between threshold and rewind", "in a deletion", "before an MLflow call", "after an MLflow call",
)  # fmt: skip


def arm(moment: str, n: int) -> Trap:
    """Set the trap in this process."""
    from mlflow import MlflowClient

    from lth_scale import checkpoint, search, training

    trap = Trap(moment, n)
    trap.around(training, "step_optimizer", "in a step")
    trap.half_written(os, "fsync", "with half a file written", lambda handle: f"/proc/self/fd/{handle}")
    trap.around(os, "replace", "before a rename", "after a rename")
    trap.around(os, "rename", "before a rename", "after a rename")
    trap.half_written(checkpoint, "save_file", "with half a checkpoint written", lambda tensors, path, *_: path)
    trap.around(search.Search, "complete", "between threshold and rewind")
    trap.half_deleted()
    for call in ("create_run", "log_batch", "set_terminated", "update_run", "log_artifacts", "delete_run"):
        trap.around(MlflowClient, call, "before an MLflow call", "after an MLflow call")
    return trap


def main() -> None:
    """Run the search with the trap of CHAOS; leave the counts in CHAOS_COUNTS, where that is given."""
    from lth_scale import imp
    from lth_scale.arguments import exit_on_bad_input

    moment, n, rank = os.environ["CHAOS"].split(":")
    trap = arm(moment if rank == os.environ.get("RANK", "0") else "", int(n))

    def counted() -> None:
        imp.main()
        if "CHAOS_COUNTS" in os.environ and os.environ.get("RANK", "0") == "0":
            known = [name for name in sys.modules if not name.startswith(("__", "tests"))]
            Path(os.environ["CHAOS_COUNTS"]).write_text(json.dumps({"seen": trap.seen, "modules": known}))

    exit_on_bad_input(counted)


if __name__ == "__main__":
    main()

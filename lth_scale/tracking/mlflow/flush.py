"""Delivery of the waiting records when a command ends. Imports MLflow only to send some."""

import os
from pathlib import Path

from lth_scale.config.registry import lazy
from lth_scale.tracking.console import print_line
from lth_scale.tracking.mlflow import journal, sender, settings
from lth_scale.tracking.mlflow.sender import SENDERS


def flush(output_dir: Path) -> None:
    """Deliver the waiting records of an output directory, on the main process, within limits.

    Prints how many are left, and how to send them.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    store = settings.tracking_uri(output_dir)
    for path in journal.journals(output_dir):
        size = path.stat().st_size
        if path not in SENDERS and sender.load_progress(path, store).sent < size:
            lazy("lth_scale.tracking.mlflow.delivery:start_sending")(path, store)
    sender.wait(SENDERS.values())
    waiting = {
        path: sum(1 for _ in journal.read(path, other.progress.sent))
        for path, other in SENDERS.items()
        if not other.is_blocked
    }
    SENDERS.clear()
    if total := sum(waiting.values()):
        paths = ", ".join(str(path) for path, count in waiting.items() if count)
        print_line(
            f"MLflow: {total} records are waiting in {paths}; run the same command again to send "
            "them"
        )

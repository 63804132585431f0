"""The time to replay a journal of losses: into a new store, and into one that has them all.

python benchmarks/journal.py --rounds 3
python benchmarks/journal.py --rounds 1 --lines 2000 10000
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from lth_scale.tracking.mlflow.connection import connect
from lth_scale.tracking.mlflow.delivery import start_sending
from lth_scale.tracking.mlflow.sender import SENDERS


def write(path: Path, lines: int) -> None:
    """Write a journal of one stage with `lines` losses, and system metrics every 100."""
    run = {"time": 1, "key": "a" * 32, "name": "search", "tags": {"task": "sst2"}}
    records = [
        {"event": "parent", **run, "params": {}},
        {"event": "start", **run, "stage": "round 00"},
    ]
    for step in range(1, lines + 1):
        records.append(
            {"event": "loss", "time": step, "stage": "round 00", "step": step, "loss": 1 / step}
        )
        if step % 100 == 0:
            usage = {"system/host/cpu_utilization_percentage": 50.0}
            records.append(
                {
                    "event": "usage",
                    "time": step,
                    "stage": "round 00",
                    "step": step,
                    "metrics": usage,
                }
            )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def send(path: Path, store: str) -> float:
    """Return the seconds until the whole journal is sent."""
    began = time.perf_counter()
    sender = start_sending(path, store)
    while not sender.is_sent():
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    SENDERS.pop(path).stop()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lines", type=int, nargs="+", default=[20_000, 100_000])
    args = parser.parse_args()
    seconds: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty.db")
        connect(f"sqlite:///{empty}")
        for number in range(args.rounds):
            for lines in args.lines:
                place = Path(folder, f"{number}-{lines}")
                place.mkdir()
                store = f"sqlite:///{shutil.copy(empty, place / 'mlflow.db')}"
                write(path := place / "mlflow.jsonl", lines)
                seconds.setdefault(("new store", lines), []).append(send(path, store))
                path.with_suffix(".json").unlink()
                seconds.setdefault(("all there", lines), []).append(send(path, store))
    for (kind, lines), taken in sorted(seconds.items()):
        middle = statistics.median(taken)
        print(
            f"{kind}, {lines:7,} lines: {middle:6.2f} s [{min(taken):.2f}, {max(taken):.2f}], "
            f"n = {len(taken)}, {1e6 * middle / lines:.0f} µs a line"
        )


if __name__ == "__main__":
    main()

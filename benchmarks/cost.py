"""What a study will cost, as predicted and as measured, and what a week of searching costs on many
GPUs.

`python benchmarks/cost.py predicted docs/evidence/*-*.json --save docs/evidence/cost.json`
`lth_scale.study --dry_run` predicts hours from the finished jobs of a task: here from the first one alone, against what each later one took. 1 is right, 2 is twice as long. --without leaves out jobs, such as suspended ones.
`python benchmarks/cost.py week --save docs/evidence/week.json` A search of masked language models by arithmetic, nothing measured: 6 operations a parameter and token; the wire is not hidden behind arithmetic; of a parameter 4 bytes are reduced under DDP (there and back), and 2 bytes gathered twice and reduced once under ZeRO-3; a machine's traffic passes its one link. Evaluation and start are left out.
"""

import argparse
import json
import math
import shlex
import sys
from pathlib import Path

from lth_scale.config import files
from lth_scale.science.saved import provenance

PARAMETERS, PRUNABLE, HIDDEN, WORDS = 109.5e6, 84.9e6, 768, 30522  # BERT-base
CHECKPOINT, MODEL, TICKET = (
    1.314e9,
    0.438e9,
    0.0107e9,
)  # bytes on disk: benchmarks/README.md, docs/studies.md
OPERATIONS, LINK, READ, LATENCY = (
    100e12,
    50e9,
    5e9,
    20e-6,
)  # assumed: a GPU's FLOP/s, B/s a machine, B/s a rank, s


def row(what: str, unit: str, *values: float) -> dict:
    return {"what": what, "unit": unit, "values": list(values)}


def predicted(given: argparse.Namespace) -> list[dict]:
    """Of each study and task: measured ÷ predicted seconds of training, evaluation and pruning, job
    by job.
    """
    found = []
    for path in given.files:
        kept, by_task = json.loads(path.read_text()), {}
        for job in kept["plan"]["jobs"]:
            if job["id"] in kept["finished"] and job["id"] not in given.without:
                rows = kept["rows"][job["id"]]
                cost = [sum(float(each[name]) for each in rows) for name in ("seconds", "steps")]
                by_task.setdefault(job["flags"]["task"], []).append(cost)
        for task, ((seconds, steps), *later) in by_task.items():
            ratios = [mine / (seconds / steps * count) for mine, count in later]
            if ratios:
                found.append(row(f"{path.stem}, {task}: measured ÷ predicted, a job", "", *ratios))
    return found


def week(given: argparse.Namespace) -> list[dict]:
    """Rounds, steps, operations, traffic and disk of `--days` on `--machines` × `--gpus`."""
    ranks, rounds = given.machines * given.gpus, 10
    tokens = given.batch * given.length
    work = 6 * tokens * (PARAMETERS + 0.15 * HIDDEN * WORDS)  # the head sees the masked 15 % alone
    others = (given.machines - 1) / given.machines
    rows = [
        row("GPU hours", "h", 24 * given.days * ranks),
        row("rounds (0, 10 … 90 %)", "", rounds),
        row("tokens a step, all GPUs", "", tokens * ranks),
        row("arithmetic of a step", "ms", 1e3 * work / OPERATIONS),
    ]
    for kind, moved in (("DDP", 2 * 4 * PARAMETERS), ("ZeRO-3", 3 * 2 * PARAMETERS)):
        wire = moved * others / LINK
        steps = given.days * 86400 / rounds / (work / OPERATIONS + wire)
        rows += [
            row(f"{kind}: traffic of a machine and step", "GB", moved * others / 1e9),
            row(f"{kind}: its time", "ms", 1e3 * wire),
            row(f"{kind}: steps a round", "", steps),
            row(
                f"{kind}: the paper's rounds of 10,000 steps instead",
                "h",
                1e5 / steps / rounds * 24 * given.days,
            ),
            row(f"{kind}: tokens in all", "10⁹", steps * rounds * tokens * ranks / 1e9),
            row(
                f"{kind}: traffic of a machine in all", "TB", steps * rounds * moved * others / 1e12
            ),
        ]
    cut = 6 * 4 * PRUNABLE / ranks / READ + 17 * LATENCY * math.log2(ranks)
    disk = 2 * CHECKPOINT + 2 * MODEL + rounds * TICKET
    return [
        *rows,
        row("the exact threshold, a round", "ms", 1e3 * cut),
        row("disk at most", "GB", disk / 1e9),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("predicted", "week"))
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--machines", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    rows = {"predicted": predicted, "week": week}[given.what](given)
    for each in rows:
        print(
            f"{each['what']:<60} {' '.join(f'{value:.4g}' for value in sorted(each['values']))} {each['unit']}"
        )
    if given.save:
        command = shlex.join(["python", "benchmarks/cost.py", *sys.argv[1:]])
        files.write_json(given.save, {"made": provenance(None, command), "rows": rows})


if __name__ == "__main__":
    main()

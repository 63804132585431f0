"""A whole round at BERT-base's size: search, sharded search, exports and a speed check, with their
time and memory.

`python benchmarks/base_size.py --model DIR --dataset_path DIR --save docs/evidence/base_size.json` trains --steps steps of 32 rows, prunes at one stroke to --sparsity, and trains the ticket as long; alone, then with ZeRO-3 on two ranks, by turns, --repeats times. What is already below --work is measured no second time.
"""

import argparse
import json
import math
import os
import shlex
import sys
import time
from pathlib import Path
from statistics import median

import psutil
from safetensors import safe_open

from lth_scale import Ticket
from lth_scale.config import files
from lth_scale.science.saved import provenance

ZERO3 = [
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    "accelerate_configs/zero3.yaml",
    "--num_processes",
    "2",
    "--num_cpu_threads_per_process",
    "1",
]


def run(work: Path, name: str, command: list[str]) -> dict:
    """Seconds and the most memory that the command and what it started held together, once; kept in
    `work`.
    """
    kept = work / f"{name}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    began, peak = time.monotonic(), 0
    with (work / f"{name}.log").open("w") as log:
        child = psutil.Popen([sys.executable, *command], stdout=log, stderr=log)
        while child.poll() is None:
            peak = max(peak, sum(map(held, [child, *child.children(recursive=True)])))
            time.sleep(1)
    assert child.returncode == 0, (work / f"{name}.log").read_text()[-2000:]
    measured = {
        "seconds": time.monotonic() - began,
        "bytes": peak,
        "command": shlex.join(["python", *command]),
    }
    files.write_json(kept, measured)
    return measured


def held(process: psutil.Process) -> int:
    """Its memory, of which what it shares with others is counted in parts."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def row(what: str, unit: str, *values: float) -> dict:
    return {"what": what, "unit": unit, "values": list(values)}


def whole(name: str, measured: dict) -> list[dict]:
    return [
        row(f"{name}: whole command", "s", measured["seconds"]),
        row(f"{name}: peak memory of all its processes", "GB", measured["bytes"] / 1e9),
    ]


def search(
    name: str, given: argparse.Namespace, launcher: list[str], batch: int, repeat: int
) -> list[dict]:
    """A search of two rounds."""
    place = given.work / (name.replace(" ", "_") + (f"_{repeat}" if repeat > 1 else ""))
    sizes = [
        "--max_steps",
        given.steps,
        "--max_train_samples",
        given.steps * 32,
        "--max_eval_samples",
        200,
    ]
    ticket = ["--schedule", "one_shot", "--target_sparsity", given.sparsity, "--report_to", "none"]
    command = [
        *launcher,
        "-m",
        "lth_scale.imp",
        "--task",
        given.task,
        "--model_name_or_path",
        given.model,
        "--dataset_path",
        given.dataset_path,
        "--per_device_train_batch_size",
        batch,
        *sizes,
        *ticket,
        *(["--bf16"] if given.bf16 else []),
        "--optim",
        "adamw_torch_fused",
        "--output_dir",
        place,
    ]
    measured = run(given.work, f"{place.name}-log", list(map(str, command)))
    results = json.loads((place / "results.json").read_text())
    what = f"{given.steps} steps, evaluation, pruning, files"
    rounds = [
        row(f"{name}: round {k}, {what}", "s", entry["seconds"]) for k, entry in enumerate(results)
    ]
    return [*rounds, *whole(name, measured)]


def searches(given: argparse.Namespace) -> list[dict]:
    """Alone and sharded by turns; a row has a value of each repeat."""
    launcher = [*ZERO3, "--mixed_precision", "bf16" if given.bf16 else "no"]
    runs = [
        [
            *search("search", given, [], 32, repeat),
            *search("ZeRO-3 on 2 ranks", given, launcher, 16, repeat),
        ]
        for repeat in range(1, given.repeats + 1)
    ]
    each = zip(*runs, strict=True)
    return [
        row(same[0]["what"], same[0]["unit"], *(one["values"][0] for one in same)) for same in each
    ]


def states(given: argparse.Namespace) -> list[dict]:
    """Bytes of weights, moments, gradients and mask as docs/scale_out.md predicts them, of all
    processes together.
    """
    with safe_open(
        next((given.work / "search").glob("rounds/*/model/model.safetensors")), "pt"
    ) as file:
        weights = sum(math.prod(file.get_slice(name).get_shape()) for name in [*file.keys()])
    masked = Ticket.load(given.work / "search/ticket.safetensors").prunable
    whole, sharded = 16 * weights + masked, 18 * weights + masked + 2 * 1e9
    return [
        row("search: predicted of it for weights, moments, gradients, mask", "GB", whole / 1e9),
        row("ZeRO-3 on 2 ranks: predicted of it for the same and two buckets", "GB", sharded / 1e9),
    ]


def shipped(given: argparse.Namespace) -> list[dict]:
    """Exports of the ticket of the search, and what its engines take to be compared."""
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    for kind in ("dense", "compact", "native"):
        target = given.work / f"export_{kind}"
        command = [
            "-m",
            "lth_scale.export",
            str(given.work / "search"),
            "--format",
            kind,
            "--output_dir",
            str(target),
        ]
        rows += whole(f"export {kind}", run(given.work, f"export-{kind}", command))
        size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
        rows.append(row(f"export {kind}: size", "MB", size / 1e6))
    command = [
        "-m",
        "lth_scale.speed",
        str(given.work / "search"),
        "--batch_size",
        "1",
        "--max_eval_samples",
        "100",
        "--repeats",
        "10",
        "--report_to",
        "none",
        "--output_dir",
        str(given.work / "speed"),
    ]
    return [*rows, *whole("speed check of 13 engines", run(given.work, "speed-check", command))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset_path", required=True)
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--searches_only", action="store_true", help="no export, no speed check")
    parser.add_argument("--work", type=Path, default=Path("runs/base_size"))
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = searches(given)
    rows += states(given) if given.bf16 else []
    rows += [] if given.searches_only else shipped(given)
    how = shlex.join(["python", "benchmarks/base_size.py", *sys.argv[1:]])
    for each in rows:
        print(
            f"{each['what']:<70} {median(each['values']):10.2f} {each['unit']}, n = {len(each['values'])}"
        )
    if given.save:
        files.write_json(given.save, {"made": provenance(given.work, how), "rows": rows})


if __name__ == "__main__":
    main()

"""Which learning rate and number of epochs train the dense network best, by task.

A ticket is compared with the dense network, so that network must be trained well first. Every
setting is chosen on rows held out of the training data, never on the validation data of the study:
a tenth of the training rows, drawn with a fixed seed. The command can be repeated: finished runs
are kept, and an interrupted one continues.

    python docs/evidence/dense_first.py MODEL DATA RUNS --tasks mrpc stsb

MODEL: an encoder. DATA: a directory for each task with train.jsonl. RUNS: where the splits and the
runs are kept. The scores so far are written to docs/evidence/dense-first.json.
"""

import argparse
import json
import random
import subprocess
import sys
from itertools import product
from pathlib import Path

from lth_scale.config import files

LEARNING_RATES = ("2e-5", "5e-5", "1e-4", "2e-4")
EPOCHS = ("3", "5")
HELD_OUT = 0.1
SEED = 1
RESULTS = Path(__file__).with_name("dense-first.json")
SETTINGS = (
    *("--per_device_train_batch_size", "16", "--optim", "adamw_torch_fused"),
    *("--ignore", "pooler", "--save_steps", "0", "--report_to", "none", "--seeds", str(SEED)),
)


def split(source: Path, target: Path) -> Path:
    """Divide the rows of `source`/train.jsonl into train.jsonl and validation.jsonl of `target`."""
    rows = (source / "train.jsonl").read_text().splitlines(keepends=True)
    held_out = {*random.Random(SEED).sample(range(len(rows)), round(HELD_OUT * len(rows)))}
    parts = {
        "train": [row for i, row in enumerate(rows) if i not in held_out],
        "validation": [row for i, row in enumerate(rows) if i in held_out],
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, lines in parts.items():
        files.write_bytes(target / f"{name}.jsonl", "".join(lines).encode())
    return target


def train(args: argparse.Namespace, task: str, rate: str, epochs: str) -> dict[str, object]:
    """Train one dense network, if it is not yet, and return its settings and scores."""
    output = args.runs / f"{task}-lr{rate}-epochs{epochs}"
    data = split(args.data / task, args.runs / "data" / task)
    flags = ["--task", task, "--model_name_or_path", args.model, "--dataset_path", data]
    flags += ["--learning_rate", rate, "--num_train_epochs", epochs, "--output_dir", output]
    command = [sys.executable, "-m", "lth_scale.transfer", *map(str, flags), *SETTINGS]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (row,) = files.read_json(output / "results.json")
    kept = {key: row[key] for key in ("eval", "trivial", "steps", "seconds") if key in row}
    return {"task": task, "learning_rate": rate, "num_train_epochs": epochs, **kept}


def main() -> None:
    """Train every setting of the tasks and write the scores after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "stsb"])
    args = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    keys = ("task", "learning_rate", "num_train_epochs")
    finished = {tuple(row[key] for key in keys) for row in known}
    for setting in product(args.tasks, LEARNING_RATES, EPOCHS):
        if setting not in finished:
            known.append(train(args, *setting))
            files.write_json(RESULTS, known)


if __name__ == "__main__":
    main()

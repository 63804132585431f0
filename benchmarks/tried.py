"""What full networks learn, by task and hyper-parameters: is there anything here that a ticket
could keep?

`python benchmarks/tried.py RUN... --save docs/evidence/tried.json` reads the first rounds of searches of `lth_scale.imp`. Of runs that differ in their seeds alone one row is made.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from lth_scale.config import files
from lth_scale.science.saved import provenance
from lth_scale.tasks.registry import TASKS


def learnt(run: Path) -> tuple[str, float]:
    """How a search trained its full network, and the score of it, in points."""
    said = json.loads((run / "arguments.json").read_text())
    first = json.loads((run / "results.json").read_text())[0]
    metric = TASKS[said["task"]].metric
    model, batch, rate = (
        Path(said["model_name_or_path"]).name,
        said["per_device_train_batch_size"],
        said["learning_rate"],
    )
    how = f"{model} on {said['task']}, {first['steps']} steps of {batch} at {rate:g}: {metric}"
    return how, 100 * first["eval"][metric]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--save", type=Path)
    given, found = parser.parse_args(), {}
    for run in given.runs:
        how, score = learnt(run)
        found.setdefault(how, []).append(score)
    rows = [
        {"what": how, "unit": "points", "values": scores} for how, scores in sorted(found.items())
    ]
    for each in rows:
        print(f"{each['what']:<80} {' '.join(f'{value:.1f}' for value in each['values'])}")
    if given.save:
        command = shlex.join(["python", "benchmarks/tried.py", *sys.argv[1:]])
        files.write_json(given.save, {"made": provenance(given.runs[0], command), "rows": rows})


if __name__ == "__main__":
    main()

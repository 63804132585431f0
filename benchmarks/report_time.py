"""How long `lth_scale.report` takes on a finished study of about 1,000 jobs, without tickets.

`python benchmarks/report_time.py --rounds 3` plans the paper's studies with --seeds in place of its
five, writes results with drawn scores in place of every job's, and measures the CPU seconds of the command in a
process of its own, on one thread. `--profile` shows where the time goes, once, in this process.
"""

import argparse
import cProfile
import os
import pstats
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from lth_scale.config import files
from lth_scale.science import plans, report_command, study_file
from lth_scale.tasks.registry import TASKS

STUDIES = Path(__file__).parents[1] / "studies"
FULL = 0.85  # the score that the drawn ones are close to


def plan(folder: Path, seeds: int) -> plans.Plan:
    """The studies of paper.yaml, with as many seeds for its Table 2."""
    for path in STUDIES.glob("*.yaml"):
        (folder / path.name).write_bytes(path.read_bytes())
    content = yaml.safe_load((folder / "table2.yaml").read_text())
    (folder / "table2.yaml").write_text(
        yaml.safe_dump({**content, "seeds": [*range(1, seeds + 1)]})
    )
    return plans.build_plan(study_file.load_study(folder / "paper.yaml", {}))


def row(job: plans.Job, **position: float) -> dict:
    """A row of a results.json, with the keys that runs write."""
    metrics = TASKS[job.args.task].metrics
    loss = position.get("sparsity", 0.7) ** 4 / 4
    trivial = {name: dict.fromkeys(metrics, 0.5) for name in ("constant", "chance")}
    return {
        **{"pruned": 59_866_112, "prunable": 85_524_480, "threshold": 0.031, "steps": 36816},
        **{"eval": {name: FULL - loss + random.gauss(0, 0.005) for name in metrics}},
        **{"seconds": 3600.0, "peak_memory": 9_000_000_000, "starved": {}, "trivial": trivial},
        **{"constant_prediction": False, **position},
    }


def write(folder: Path, planned: plans.Plan) -> Path:
    """The directory of the study, as if all its jobs had finished."""
    directory = folder / "study"
    files.write_json(directory / "study.json", planned.to_dict())
    for job in planned.jobs.values():
        rows = [row(job, seed=job.flags.get("seeds", 1), sparsity=0.7)]
        if job.kind == "imp":
            rows = [row(job, round=k, sparsity=x) for k, x in enumerate(job.sparsities)]
        (home := directory / "jobs" / job.id).mkdir(parents=True)
        (home / "results.json").write_bytes(files.as_json(rows))
        (home / "complete").touch()
    return directory


def seconds(directory: Path) -> float:
    """CPU seconds of the command, which other processes affect less than its time."""
    command = [sys.executable, "-m", "lth_scale.report", directory, "--report_to", "none"]
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ, OMP_NUM_THREADS="1")
    )
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


def profiled(directory: Path) -> None:
    """Print the functions in which the report spends its time."""
    flags = report_command.ReportFlags(directory=str(directory), report_to="none")
    with cProfile.Profile() as profile:
        report_command.run(flags)
    pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


def main() -> None:
    """Write the study, and time or profile its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        planned = plan(Path(folder), given.seeds)
        directory = write(Path(folder), planned)
        print(f"{len(planned.jobs)} jobs, {len(planned.conditions)} conditions", flush=True)
        if given.profile:
            return profiled(directory)
        times = [seconds(directory) for _ in range(given.rounds)]
    print(
        f"{statistics.median(times):.1f} [{min(times):.1f}, {max(times):.1f}] CPU s, n = {len(times)}"
    )


if __name__ == "__main__":
    main()

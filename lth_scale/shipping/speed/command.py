"""What `python -m lth_scale.speed` does: time networks in every engine on this machine."""

import os
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any

from lth_scale.config import directories, listing
from lth_scale.config.command import construct
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import COUNT, SEED, TOKENS, Range, flag
from lth_scale.config.redaction import without_secrets
from lth_scale.config.startup import first_imports
from lth_scale.config.texts import printable, quoted, reason
from lth_scale.shipping.export.locations import locate
from lth_scale.shipping.speed.registry import EAGER
from lth_scale.shipping.speed.report import FILES
from lth_scale.tracking.machine import usable_cores
from lth_scale.tracking.mlflow import variables

CORES = len(usable_cores())


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The flags of `lth_scale.speed`."""

    targets: tuple[str, ...] = flag(
        "searches, rounds, checkpoints or exports of them",
        MISSING,
        positional=True,
        metavar="TARGETS",
    )
    batch_size: tuple[int, ...] = flag(
        "sequences per call; several sizes are measured in turn", (1, 8), range=TOKENS
    )
    sequence_length: tuple[int, ...] | None = flag(
        "tokens per sequence, without padding (default: 128, or the network's maximum)",
        range=TOKENS._replace(least=2, words="2 or more, at most 1,048,576"),
    )
    threads: tuple[int, ...] = flag(
        "threads, each pinned to a core",
        (1,),
        range=Range(1, CORES, f"1 to {CORES}, the cores this process may use"),
    )
    backends: tuple[str, ...] | None = flag(
        f"engines besides {EAGER} (default: all)", registry="backend"
    )
    device: str = flag(
        "cpu, cuda, or auto for a GPU if there is one", "auto", choices=("auto", "cpu", "cuda")
    )
    repeats: int = flag(
        "measured calls per engine, interleaved",
        20,
        range=Range(4, 10**6, "4 or more, at most 1,000,000"),
    )
    warmup: int = flag(
        "warmup calls per engine", 3, range=Range(1, 10**6, "1 or more, at most 1,000,000")
    )
    seed: int = flag("seed of the order in which engines are called", 0, range=SEED)
    task: str | None = flag(
        "score the networks on this task (default: that of a target's run)", registry="task"
    )
    dataset_path: str | None = flag(
        "directory with its train.jsonl and validation.jsonl (default: the run's)", metavar="DIR"
    )
    max_eval_samples: int = flag("score on the first N validation examples", 500, range=COUNT)
    output_dir: str | None = flag(
        "directory for speed.md, speed.json and speed.png (default: below runs/)", metavar="DIR"
    )
    report_to: str = flag("experiment tracker", "mlflow", choices=("mlflow", "none"))

    @property
    def directory(self) -> Path:
        """The directory of the report."""
        return Path(
            self.output_dir or Path("runs", f"speed-{Path(self.targets[0]).resolve().name}")
        )


def resolve(values: dict[str, Any], flags: type[Speed]) -> Speed:
    """Return the flags, checked as far as that needs no torch. Raises BadInput."""
    args = construct(values, flags)
    for target in args.targets:
        locate(target)
    if args.dataset_path not in (None, "embedded") and not Path(str(args.dataset_path)).is_dir():
        raise BadInput(
            f"--dataset_path {args.dataset_path}: no such directory; specify one that contains "
            "validation.jsonl and so on"
        )
    if args.report_to == "mlflow":
        variables.check()
    if args.output_dir:
        check_output(Path(args.output_dir))
    return args


def check_output(directory: Path) -> None:
    """Raise BadInput unless the report can be written to `directory`."""
    try:
        directories.check_writable(directory)
        listing.check_listed(directory, FILES, ("speed.md", b"# Speed check\n\n## Machine\n"))
    except OSError as problem:
        raise BadInput(
            f"--output_dir {directory}: cannot be written ({problem.strerror}); specify another "
            "directory"
        ) from None


def run(args: Speed) -> None:
    """Time all targets, write the report and print it. Raises BadInput."""
    output = time_targets(args)
    print(printable((output / "speed.md").read_text()))
    print(f"report   {quoted(output / 'speed.md')}")


def time_targets(args: Speed) -> Path:
    """Load and check all targets, time them, and write the report.

    Returns the directory of the report. Raises BadInput.
    """
    with first_imports():
        import torch

        from lth_scale.shipping.export.source import load_source
        from lth_scale.shipping.speed import accuracy, inputs, report, timing
        from lth_scale.training.preparation import quiet_libraries

    quiet_libraries()
    has_gpu = torch.cuda.is_available()
    if args.device == "cuda" and not has_gpu:
        raise BadInput("--device cuda: no CUDA GPU found; use --device cpu")
    device = ("cuda" if has_gpu else "cpu") if args.device == "auto" else args.device
    check_output(args.directory)
    values = {name: getattr(args, name) for name in ("task", "dataset_path", "max_eval_samples")}
    given = {name: value for name, value in values.items() if value}
    loaded, notes = [], []
    for target in args.targets:
        source = load_source(target)
        for length in args.sequence_length or ():
            inputs.text_inputs(source, 1, length)
        task, note = accuracy.load_task(source, given)
        loaded.append((source, task))
        notes += [note] if note else []
    cells = [
        cell for source, task in loaded for cell in timing.time_target(source, task, args, device)
    ]
    flags = {name: value for name, value in asdict(args).items() if name != "targets"}
    report.write(args.directory, cells, notes, flags)
    if args.report_to == "mlflow":
        log(args.directory, report.metrics(cells))
    return args.directory


def log(output: Path, metrics: dict[str, float]) -> None:
    """Log a report to MLflow. Prints why if that fails: the report is already written."""
    from lth_scale.tracking.mlflow import reports  # imports mlflow
    from lth_scale.tracking.mlflow.stores import local_store

    store = os.environ.get("MLFLOW_TRACKING_URI") or local_store(output)
    paths = [path for name in FILES if (path := output / name).is_file()]
    try:
        reports.log_report(store, output.name, paths, "speed", metrics)
        print(f"MLflow   logged to {without_secrets(store)}")
    except Exception as problem:  # MLflow raises many kinds
        print(f"MLflow   not logged to {without_secrets(store)}: {reason(problem)}")

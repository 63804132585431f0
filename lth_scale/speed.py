"""`python -m lth_scale.speed TARGETS…`: time networks in every engine, on this machine, and say which is faster."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lth_scale.config import files, listing, parsers
from lth_scale.config.errors import BadInput
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.parsers import Range, flag
from lth_scale.config.redaction import without_secrets
from lth_scale.config.startup import first_imports, is_main_process
from lth_scale.config.texts import printable, quoted, reason
from lth_scale.shipping.export.locations import locate
from lth_scale.shipping.speed.registry import EAGER
from lth_scale.shipping.speed.report import FILES
from lth_scale.tracking.machine import usable_cores
from lth_scale.tracking.mlflow import variables


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one speed check is told."""

    batch_size: tuple[int, ...] = flag(
        "sequences a call; several are measured in turn", (1, 8), nargs="+", of=int
    )
    sequence_length: tuple[int, ...] | None = flag(
        "tokens a sequence, all of them text (default: 128, or what the network takes)",
        nargs="+",
        of=int,
    )
    threads: tuple[int, ...] = flag(
        "threads, and cores that they are kept on", (1,), nargs="+", of=int
    )
    backends: tuple[str, ...] | None = flag(
        f"engines beside {EAGER} (default: all)", nargs="+", of=str, registry="backend"
    )
    device: str = flag(
        "where: cpu, cuda, or auto for a GPU where there is one",
        "auto",
        choices=("auto", "cpu", "cuda"),
    )
    repeats: int = flag("calls of each engine that count, interleaved", 20)
    warmup: int = flag("calls of each engine before them", 3)
    seed: int = flag("seed of the order in which engines are called", 0)
    task: str | None = flag(
        "score the networks on this task (default: that of a target's run)", registry="task"
    )
    dataset_path: str | None = flag(
        "directory of its train.jsonl and validation.jsonl (default: the run's)"
    )
    max_eval_samples: int = flag("score on the first N validation examples", 500)
    output_dir: str | None = flag(
        "where speed.md, speed.json and speed.png go (default: below runs/)"
    )
    report_to: str = flag("where the report is kept too", "mlflow", choices=("mlflow", "none"))


def build_parser() -> parsers.OneLineParser:
    """The targets and the flags."""
    parser = parsers.build_parser("lth_scale.speed", __doc__ or "", Speed)
    parser.usage = "%(prog)s TARGETS… [flags]"
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGETS",
        help="searches, rounds, checkpoints or exports of them",
    )
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[list[str], Speed]:
    """The targets and the flags, checked as far as that goes without torch. Raises BadInput."""
    given = vars(build_parser().parse_args(argv))
    once: dict[str, Any] = {
        k: tuple(dict.fromkeys(v)) if isinstance(v, list) else v for k, v in given.items()
    }
    targets, args = list(once.pop("targets")), Speed(**once)
    for target in targets:
        locate(target)
    check_ranges(args)
    return targets, args


def check_ranges(args: Speed) -> None:
    """Refuse values out of range. Raises BadInput."""
    cores = len(usable_cores())
    calls = Range(1, 10**6, "1 or more, at most 1,000,000")
    parsers.check_ranges(
        args,
        {
            "batch_size": parsers.TOKENS,
            "warmup": calls,
            "seed": Range(0, 2**32 - 1, "0 or more, at most 4,294,967,295"),
            "sequence_length": parsers.TOKENS._replace(
                least=2, words="2 or more, at most 1,048,576"
            ),
            "threads": Range(1, cores, f"1 to {cores}, the cores this process may use"),
            "repeats": calls._replace(least=4, words="4 or more, at most 1,000,000"),
            "max_eval_samples": parsers.COUNT,
        },
    )
    if args.dataset_path not in (None, "embedded") and not Path(str(args.dataset_path)).is_dir():
        raise BadInput(
            f"--dataset_path {args.dataset_path}: no such directory; it holds validation.jsonl and so on"
        )
    if args.report_to == "mlflow":
        variables.check()
    if args.output_dir:
        check_output(Path(args.output_dir))


def check_output(directory: Path) -> None:
    """Raise BadInput unless the report can be written there."""
    try:
        files.check_writable(directory)
        listing.check_listed(directory, FILES, ("speed.md", b"# Speed check\n\n## Machine\n"))
    except OSError as problem:
        raise BadInput(
            f"--output_dir {directory}: cannot be written ({problem.strerror}); give another"
        ) from None


def run(targets: list[str], args: Speed) -> Path:
    """Load and check all targets, time them, and write the report. Returns its directory. Raises BadInput."""
    with first_imports():
        import torch

        from lth_scale.shipping.export.source import load_source
        from lth_scale.shipping.speed import accuracy, inputs, report, timing
        from lth_scale.training.run import quiet_libraries

    quiet_libraries()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: there is no CUDA GPU here; give --device cpu")
    device = (
        args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    given = {
        name: getattr(args, name)
        for name in ("task", "dataset_path", "max_eval_samples")
        if getattr(args, name)
    }
    output = Path(args.output_dir or Path("runs", f"speed-{Path(targets[0]).resolve().name}"))
    check_output(output)
    prepared, notes = [], []
    for target in targets:
        source = load_source(target)
        for length in args.sequence_length or ():
            inputs.text_inputs(source, 1, length)
        task, note = accuracy.load_task(source, given)
        prepared.append((source, task))
        notes += [note] if note else []
    cells = [
        cell for source, task in prepared for cell in timing.time_target(source, task, args, device)
    ]
    report.write(output, cells, notes, asdict(args))
    if args.report_to == "mlflow":
        log(output, cells)
    return output


def log(output: Path, cells: list[dict]) -> None:
    """Keep report and numbers in MLflow; where that fails it is said, and the report is written."""
    from lth_scale.shipping.speed import report
    from lth_scale.tracking.mlflow import reports  # imports mlflow
    from lth_scale.tracking.mlflow.stores import beside

    store = os.environ.get("MLFLOW_TRACKING_URI") or beside(output)
    paths = [path for name in FILES if (path := output / name).is_file()]
    try:
        reports.log_report(store, output.name, paths, "speed", report.metrics(cells))
        print(f"MLflow   logged to {without_secrets(store)}")
    except Exception as problem:  # MLflow raises many kinds
        print(f"MLflow   not logged to {without_secrets(store)}: {reason(problem)}")


def main() -> None:
    """Check what the command line names, and say where the report is."""
    if not is_main_process():
        return  # one process of a launcher's is enough
    output = run(*parse())
    print(printable((output / "speed.md").read_text()))
    print(f"report   {quoted(output / 'speed.md')}")


if __name__ == "__main__":
    exit_on_bad_input(main)

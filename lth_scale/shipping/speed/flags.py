"""The flags of the speed check, and the checks that need no torch."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from lth_scale.config import directories, manifest
from lth_scale.config.command import construct
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import COUNT, SEED, TOKENS, Range, flag, report_to_flag
from lth_scale.shipping.export.locations import locate
from lth_scale.shipping.speed.registry import EAGER
from lth_scale.tracking.machine import usable_cores
from lth_scale.tracking.mlflow import settings

FILES = ("speed.md", "speed.json", "speed.png")


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
    threads: tuple[int, ...] = flag("threads, each pinned to a core", (1,))
    backends: tuple[str, ...] | None = flag(
        f"backends to time besides {EAGER} (default: all)", registry="backend"
    )
    device: str = flag(
        "cpu, cuda, or auto for a GPU if there is one", "auto", choices=("auto", "cpu", "cuda")
    )
    repeats: int = flag(
        "measured calls per backend, interleaved",
        20,
        range=Range(4, 10**6, "4 or more, at most 1,000,000"),
    )
    warmup: int = flag(
        "warmup calls per backend", 3, range=Range(1, 10**6, "1 or more, at most 1,000,000")
    )
    seed: int = flag("seed of the order in which backends are called", 0, range=SEED)
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
    report_to: str = report_to_flag()

    @property
    def directory(self) -> Path:
        """The directory of the report."""
        return Path(self.output_dir or f"runs/speed-{Path(self.targets[0]).resolve().name}")


def resolve(values: dict[str, Any], flags: type[Speed]) -> Speed:
    """Return the flags, checked as far as that needs no torch. Raises BadInput."""
    args = construct(values, flags)
    cores = len(usable_cores())
    for threads in args.threads:
        if not 1 <= threads <= cores:
            raise BadInput(
                f"--threads {threads}: out of range; use 1 to {cores}, the cores this process may "
                "use"
            )
    for target in args.targets:
        locate(target)
    if (path := args.dataset_path) and path != EMBEDDED and not Path(path).is_dir():
        raise BadInput(
            f"--dataset_path {path}: no such directory; use one with train.jsonl and "
            "validation.jsonl"
        )
    if args.report_to == "mlflow":
        settings.check_variables()
    if args.output_dir:
        check_output(args.directory)
    return args


def check_output(directory: Path) -> None:
    """Raise BadInput unless the report can be written to `directory`."""
    with directories.must_be_writable(f"--output_dir {directory}"):
        directories.check_writable(directory)
        manifest.check_listed(directory, FILES, ("speed.md", b"# Speed check\n\n## Machine\n"))

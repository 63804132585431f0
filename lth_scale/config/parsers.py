"""Command-line flags and the parser they make."""

import argparse
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, NoReturn, get_args, get_type_hints

from lth_scale.config.defaults import DEFAULTS, GLUE_DEFAULTS
from lth_scale.config.errors import BadInput
from lth_scale.config.registry import REGISTRIES
from lth_scale.config.texts import is_text

# What --help shows together: the flags of imp and transfer by the title of their group.
GROUPS = {
    "what to train": "task preset model_name_or_path model_revision fresh_head keep_head dataset_path max_seq_length "
    "doc_stride max_train_samples max_eval_samples ticket theta allow_other_weights seed seeds output_dir",
    "search": "target_sparsity prune_rate schedule scope pattern score ignore rewind rewind_step lr_span dense "
    "keep_theta distill early_bird",
    "comparison": "control compare_with connectivity keep_network",
    "training": "per_device_train_batch_size gradient_accumulation_steps learning_rate lr_scheduler_type warmup_steps "
    "weight_decay max_grad_norm num_train_epochs max_steps optim optim_args",
    "precision and speed": "bf16 fp16 full_determinism per_device_eval_batch_size dataloader_num_workers",
    "checkpoints and tracking": "save_steps save_total_limit logging_steps report_to run_name ddp_timeout",
    "Hub": "push_to_hub hub_model_id hub_private_repo",
}
# What stands for a flag's value in --help, by the name of the flag or of its type.
METAVARS = {
    **dict.fromkeys(("dataset_path", "output_dir", "dense", "compare_with"), "DIR"),
    **dict.fromkeys(("ticket", "theta"), "FILE"),
    **dict.fromkeys(("hub_model_id", "run_name"), "NAME"),
    **{"model_name_or_path": "MODEL", "model_revision": "REVISION", "pattern": "PATTERN"},
    **{
        "rewind_step": "STEP",
        "keep_theta": "STEPS",
        "ignore": "REGEX",
        "int": "N",
        "float": "X",
        "str": "TEXT",
    },
}
PATHS = {
    name for name, value in METAVARS.items() if value in ("DIR", "FILE")
}  # flags whose values are paths
# Variables that name directories in which something is written.
DIRECTORIES = (
    *("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"),
    *(
        "HF_MODULES_CACHE",
        "MPLCONFIGDIR",
        "TORCH_EXTENSIONS_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
    ),
)
VERBOSE = "--verbose"


def flag(help: str, default: Any = None, **options: Any) -> Any:
    """A dataclass field that is also a command-line flag."""
    return field(default=default, metadata={"help": help, **options})


FRACTION = "a fraction, at least 0 and below 1, such as 0.7"


class Range(NamedTuple):
    """The least and the greatest value of a flag, and both in words."""

    least: float
    most: float
    words: str


COUNT = Range(1, 10**9, "1 or more, at most 1,000,000,000")
BATCH = Range(1, 2**16, "1 or more, at most 65,536")
TOKENS = Range(1, 2**20, "1 or more, at most 1,048,576")
RANGES = {
    "target_sparsity": Range(0, math.nextafter(1, 0), FRACTION),
    "prune_rate": Range(math.ulp(0), 1, "a fraction above 0 and at most 1, such as 0.1"),
    "learning_rate": Range(math.ulp(0), 1000, "a number above 0 and at most 1,000, such as 2e-5"),
    "warmup_steps": Range(
        0, 10**9, "0 or more steps, at most 1,000,000,000, or a fraction below 1"
    ),
    "weight_decay": Range(0, 1000, "0 or more, at most 1,000, such as 0.01"),
    "max_grad_norm": Range(0, 1e12, "0 (off) or more, at most 1e12, such as 1.0"),
    "num_train_epochs": Range(
        math.ulp(0), 10**6, "a number above 0 and at most 1,000,000, such as 3"
    ),
    "max_steps": Range(
        -1, 10**9, "-1 (use epochs), 0 (train nothing) or more, at most 1,000,000,000"
    ),
    "seeds": Range(0, 2**32 - 1, "integers from 0 to 4294967295"),
    "seed": Range(0, 2**32 - 1, "an integer from 0 to 4294967295"),
    "max_seq_length": TOKENS._replace(least=8, words="8 or more, at most 1,048,576"),
    "doc_stride": TOKENS,
    "dataloader_num_workers": Range(0, 1024, "0 or more, at most 1,024"),
    "save_steps": Range(0, 10**9, "0 (none) or more, at most 1,000,000,000"),
    "ddp_timeout": Range(1, 10**7, "1 or more, at most 10,000,000"),
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
        ),
        BATCH,
    ),
    **dict.fromkeys(
        ("max_train_samples", "max_eval_samples", "logging_steps", "save_total_limit"), COUNT
    ),
}


class OneLineParser(argparse.ArgumentParser):
    """argparse, but an error is one line and no usage text, and the usage says `lth imp` where that was called."""

    def __init__(self, prog: str | None = None, **options: Any):
        called = "lth " if Path(sys.argv[0]).name == "lth" else "python -m lth_scale."
        super().__init__(prog=prog and prog.replace("lth_scale.", called), **options)
        about = "print a library's whole error above the line that sums it up"
        self.add_argument(VERBOSE, action="store_true", default=argparse.SUPPRESS, help=about)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's. Raises BadInput for names of files that are no text, and for an empty value.

        An empty one would stand for the current directory.
        """
        given = [*(sys.argv[1:] if args is None else args)]
        check_names(given)
        for before, part in zip(["", *given], given, strict=False):
            if not part or (part.startswith("--") and part.endswith("=")):
                name = part.rstrip("=") or (before if before.startswith("--") else "argument")
                raise BadInput(f"{name} '': is empty; give a value, or leave it out")
        namespace, rest = super().parse_known_args(args, namespace)
        vars(namespace).pop(
            "verbose", None
        )  # `is_verbose` reads it: it is no part of what a run is told
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raise BadInput; `main` of each command turns it into exit code 2."""
        raise BadInput(f"{message.removeprefix('argument ')} (see --help)")


class Wide(argparse.HelpFormatter):
    """argparse's, with room for long flags; no name is broken at its hyphens."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, max_help_position=32, **options)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def is_verbose() -> bool:
    """True where the command line has --verbose."""
    return VERBOSE in sys.argv[1:]


def check_names(words: Sequence[str]) -> None:
    """Refuse paths that are not UTF-8, also by way of links and of the current directory.

    Tracking, the data's cache and safetensors take text alone. Raises BadInput.
    """
    try:
        places = [("the current directory", os.getcwd())]
    except FileNotFoundError:
        raise BadInput("the current directory: is not there any more; change to another") from None
    places += [(name, os.environ[name]) for name in DIRECTORIES if name in os.environ]
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        before = words[i - 1] if i and words[i - 1].startswith("--") else ""
        places.append((name, value) if equals and name.startswith("--") else (before, word))
    for name, value in places:
        if not is_text(value) or not is_text(os.path.realpath(value)):
            raw = os.path.realpath(value) if is_text(value) else value
            shown = raw.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")
            raise BadInput(
                f"{name} {shown}: is not UTF-8, as a path has to be here; give another, or rename it"
            )


def build_parser(prog: str, description: str, kind: type) -> OneLineParser:
    """One flag for each field of `kind`, in GROUPS; a flag that is not given is absent from the namespace."""
    parser = OneLineParser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=Wide
    )
    needed = [
        f"--{spec.name} {spec.name.upper()}" for spec in fields(kind) if spec.default is MISSING
    ]
    parser.usage = " ".join(["%(prog)s", *needed, "[flags]"])
    hints, specs = get_type_hints(kind), {spec.name: spec for spec in fields(kind)}
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for spec in filter(None, (specs.pop(name, None) for name in names.split())):
            add_flag(group, spec, hints[spec.name])
    for spec in specs.values():
        add_flag(parser, spec, hints[spec.name])
    return parser


def add_flag(to: argparse._ActionsContainer, spec: Field, hint: Any) -> None:
    """Add the flag of a field with this type."""
    of = (
        next(t for t in get_args(hint) if t is not type(None))
        if isinstance(hint, UnionType)
        else hint
    )
    of, choices = spec.metadata.get("of", of), choices_of(spec)
    listed = len(",".join(choices)) > 24  # too long to stand for the value
    others = [choice for choice in choices if choice != spec.default]
    text = spec.metadata["help"] + (f": {', '.join(others)}" if listed else "") + default_of(spec)
    options: dict[str, Any] = {"action": "store_true"}
    if of is not bool:
        name = (
            spec.name.split("_")[-1].upper()
            if listed
            else METAVARS.get(spec.name, METAVARS[of.__name__])
        )
        options = {"type": of, "choices": choices or None, "nargs": spec.metadata.get("nargs")}
        options |= {"metavar": name} if listed or not choices else {}
    required = spec.default is MISSING
    to.add_argument(
        f"--{spec.name}", required=required, default=argparse.SUPPRESS, help=text, **options
    )


def choices_of(spec: Field) -> tuple[str, ...]:
    """What a flag may be: its choices, or the names in its registry; () where it takes anything."""
    registry = spec.metadata.get("registry")
    return (*REGISTRIES[registry],) if registry else spec.metadata.get("choices") or ()


def default_of(spec: Field) -> str:
    """` (default: …)`: the field's, or the paper's for each task; nothing where that is None or False."""
    values = spec.default if isinstance(spec.default, tuple) else (spec.default,)
    shown = " ".join(
        f"{value}" for value in values if value not in (None, MISSING) and value is not False
    )
    if spec.name in GLUE_DEFAULTS:
        usual = GLUE_DEFAULTS[spec.name]
        others = {task: DEFAULTS[task][spec.name] for task in ("squad", "mlm")}
        shown = ", ".join(
            [str(usual), *(f"{task} {value}" for task, value in others.items() if value != usual)]
        )
    return f" (default: {shown})" if shown else ""


def check_ranges(args: Any, ranges: Mapping[str, Range]) -> None:
    """Refuse values out of their range: fields hold a number, some, or None. Raises BadInput."""
    for name, (least, most, words) in ranges.items():
        given = getattr(args, name, None)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and not least <= value <= most:
                raise BadInput(f"--{name} {value}: out of range; give {words}")

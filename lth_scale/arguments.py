"""Command-line arguments: names are TrainingArguments', defaults are the paper's, errors are one line.

Nothing here imports torch, so that bad input is refused in well under a second.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, get_args, get_type_hints

EMBEDDED = "embedded"
GLUE_TASKS = ("mnli", "qqp", "stsb", "wnli", "qnli", "mrpc", "rte", "sst2", "cola")
TASKS = (*GLUE_TASKS, "mlm")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adamw_bnb_8bit")

# Chen et al. 2020, Table 1 and the README of VITA-Group/BERT-Tickets@4d8e035: batch, rate, length.
GLUE_DEFAULTS: dict[str, Any] = {
    "model_name_or_path": "google-bert/bert-base-uncased",
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-5,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "max_seq_length": 128,
}
# The same sources; a round of the MLM search is 10,000 steps (`--save_steps 10000` there).
MLM_DEFAULTS: dict[str, Any] = {
    "model_name_or_path": "google-bert/bert-base-uncased",
    "per_device_train_batch_size": 16,
    "learning_rate": 5e-5,
    "num_train_epochs": 1.0,
    "max_steps": 10_000,
    "max_seq_length": 512,
}
DEMO: dict[str, dict[str, Any]] = {
    task: {
        "model_name_or_path": EMBEDDED,
        "dataset_path": EMBEDDED,
        "target_sparsity": 0.8,
        "max_seq_length": 128,
        "control": "random_mask",
        **sizes,
    }
    for task, sizes in {
        "mlm": {"per_device_train_batch_size": 16, "learning_rate": 5e-4, "max_steps": 50, "max_eval_samples": 300},
        "sst2": {"per_device_train_batch_size": 32, "learning_rate": 1e-3, "max_steps": 150},
    }.items()
}


class BadInput(ValueError):
    """Something the user gave cannot be used; the message names the flag, its value and the remedy."""


def flag(help: str, default: Any = None, **options: Any) -> Any:
    """A dataclass field that is also a command-line flag."""
    return field(default=default, metadata={"help": help, **options})


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What one IMP search is told. Every field is a flag of the same name."""

    task: str = flag("what to train on", MISSING, choices=TASKS)
    preset: str | None = flag("demo: small model and data inside the package, no network", choices=("demo",))
    model_name_or_path: str = flag("Hub name, a directory, or 'embedded'")
    model_revision: str | None = flag("branch, tag or commit of a Hub model")
    dataset_path: str | None = flag("directory with train.jsonl and validation.jsonl in the Hub's columns")
    output_dir: str = flag("where the search is written (default: runs/TASK-MODEL)")

    per_device_train_batch_size: int = flag("examples a device and micro-step")
    per_device_eval_batch_size: int = flag("examples a device at evaluation", 64)
    gradient_accumulation_steps: int = flag("micro-steps an optimizer step", 1)
    learning_rate: float = flag("peak learning rate")
    lr_scheduler_type: str = flag("shape of the schedule", "linear", choices=SCHEDULERS)
    lr_span: str = flag(
        "what one schedule covers: a round (the paper), or all rounds together (the official code)",
        choices=("round", "all_rounds"),
    )
    warmup_steps: float = flag("steps of warm-up; below 1, a fraction of the schedule", 0.0)
    weight_decay: float = flag("decoupled weight decay of matrices", 0.0)
    max_grad_norm: float = flag("gradient clipping; 0 switches it off", 1.0)
    num_train_epochs: float = flag("epochs a round, where --max_steps is -1")
    max_steps: int = flag("optimizer steps a round; 0 trains nothing; -1 counts epochs instead")
    max_seq_length: int = flag("tokens a sequence, special tokens included")
    max_train_samples: int | None = flag("use the first N training examples (MLM: blocks)")
    max_eval_samples: int | None = flag("use the first N validation examples (MLM: blocks)")
    optim: str = flag("optimizer", "adamw_torch", choices=OPTIMIZERS)
    optim_args: str | None = flag("its arguments, as in 'momentum=0.9,nesterov=true'")
    bf16: bool = flag("bfloat16 mixed precision", False)
    fp16: bool = flag("float16 mixed precision, with loss scaling (GPU)", False)
    seed: int = flag("seed of the head, the data order, dropout and random masks", 42)
    dataloader_num_workers: int = flag("processes that prepare batches", 0)

    target_sparsity: float = flag("fraction of the prunable weights pruned in the last round", 0.9)
    prune_rate: float = flag("fraction pruned each round: of all (linear) or of the rest (geometric)", 0.1)
    schedule: str = flag("sparsities of the rounds", "linear", choices=("linear", "geometric", "one_shot", "cubic"))
    scope: str = flag("one threshold for all matrices, or one for each", "global", choices=("global", "layerwise"))
    rewind: str = flag(
        "between rounds: weights (to step i), lr (the schedule only) or none (standard pruning)",
        "weights",
        choices=("weights", "lr", "none"),
    )
    rewind_step: str = flag("i, in steps (100) or as a fraction of a round (0.05)", "0")
    ticket: str | None = flag("start from this ticket's mask instead of the dense network")
    control: str = flag("also train this control at the last two sparsities", "none", choices=("none", "random_mask"))

    logging_steps: int = flag("steps between logged losses", 10)
    report_to: str = flag("where runs are tracked", "mlflow", choices=("mlflow", "none"))
    run_name: str | None = flag("name of the run in MLflow")

    def as_dict(self) -> dict[str, Any]:
        """The fields and their values, ready for JSON."""
        return asdict(self)


# Flags that change what is shown, not what is found: the same search may go on with others.
COSMETIC = ("output_dir", "logging_steps", "report_to", "run_name", "dataloader_num_workers")

FRACTION = "a fraction, at least 0 and below 1, such as 0.7"
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "target_sparsity": (lambda x: 0 <= x < 1, FRACTION),
    "prune_rate": (lambda x: 0 < x <= 1, "a fraction above 0 and at most 1, such as 0.1"),
    "learning_rate": (lambda x: 0 < x < float("inf"), "a number above 0, such as 2e-5"),
    "warmup_steps": (lambda x: 0 <= x < float("inf"), "0 or more steps, or a fraction below 1"),
    "weight_decay": (lambda x: 0 <= x < float("inf"), "0 or more, such as 0.01"),
    "max_grad_norm": (lambda x: 0 <= x < float("inf"), "0 (off) or more, such as 1.0"),
    "num_train_epochs": (lambda x: 0 < x < float("inf"), "a number above 0, such as 3"),
    "max_steps": (lambda x: x >= -1, "-1 (use epochs), 0 (train nothing) or more"),
    "seed": (lambda x: 0 <= x < 2**32, "an integer from 0 to 4294967295"),
    "max_seq_length": (lambda x: x >= 8, "8 or more"),
    "dataloader_num_workers": (lambda x: x >= 0, "0 or more"),
    **{
        name: (lambda x: x is None or x >= 1, "1 or more")
        for name in (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "max_train_samples",
            "max_eval_samples",
            "logging_steps",
        )
    },
}


class OneLineParser(argparse.ArgumentParser):
    """argparse, but an error is one line and no usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise BadInput; `main` of each command turns it into exit code 2."""
        raise BadInput(f"{message.removeprefix('argument ')} (see --help)")


def is_local(name: str) -> bool:
    """True for the embedded model and for an existing path."""
    return name == EMBEDDED or Path(name).exists()


def embedded_path(kind: str) -> Path:
    """The directory inside the package that holds `bert`, or the demo data of a task."""
    return Path(__file__).parent / "embedded" / kind


def build_parser(prog: str, description: str) -> OneLineParser:
    """One flag for each field of Arguments; a flag that is not given is absent from the namespace."""
    parser = OneLineParser(prog=prog, description=description, allow_abbrev=False)
    hints = get_type_hints(Arguments)
    for spec in fields(Arguments):
        hint = hints[spec.name]
        kind = next(t for t in get_args(hint) if t is not type(None)) if isinstance(hint, UnionType) else hint
        shown = "" if spec.default in (None, False, MISSING) else f" (default: {spec.default})"
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": spec.metadata["help"] + shown}
        if kind is bool:
            options["action"] = "store_true"
        else:
            options |= {"type": kind, "choices": spec.metadata.get("choices"), "metavar": kind.__name__.upper()}
            if options["choices"]:
                del options["metavar"]
        parser.add_argument(f"--{spec.name}", required=spec.default is MISSING, **options)
    return parser


def parse(argv: Sequence[str] | None, prog: str, description: str) -> Arguments:
    """Arguments from a command line: what is given, else the preset's, else the paper's.

    Raises BadInput (a ValueError) that names the flag, its value and the remedy.
    """
    given = vars(build_parser(prog, description).parse_args(argv))
    return resolve(given)


def resolve(given: dict[str, Any]) -> Arguments:
    """Fill in what was not given and check the whole. Raises BadInput."""
    task = given["task"]
    values = dict(MLM_DEFAULTS if task == "mlm" else GLUE_DEFAULTS)
    if given.get("preset") == "demo":
        if task not in DEMO and "dataset_path" not in given:
            raise BadInput(f"--preset demo: has no data for --task {task}; take --task {' or '.join(DEMO)}")
        values |= DEMO.get(task, DEMO["sst2"])
    if "num_train_epochs" in given:
        values["max_steps"] = -1
    values |= given
    stem = "demo" if values["model_name_or_path"] == EMBEDDED else Path(values["model_name_or_path"]).name
    values.setdefault("output_dir", os.path.join("runs", f"{task}-{stem}"))
    values.setdefault("lr_span", "all_rounds" if values.get("rewind") == "none" else "round")
    args = Arguments(**values)
    check(args)
    return args


def check(args: Arguments) -> None:
    """Refuse values out of range and flags that contradict each other. Raises BadInput."""
    for name, (good, remedy) in RANGES.items():
        value = getattr(args, name)
        if not good(value):
            raise BadInput(f"--{name} {value}: out of range; give {remedy}")
    if args.bf16 and args.fp16:
        raise BadInput("--bf16 --fp16: both are set; keep one")
    parse_rewind_step(args.rewind_step, steps=None)
    if args.rewind != "weights" and parse_rewind_step(args.rewind_step, steps=None) != 0:
        raise BadInput(f"--rewind_step {args.rewind_step}: has no meaning with --rewind {args.rewind}; leave one out")
    if args.rewind == "lr" and args.lr_span == "all_rounds":
        raise BadInput("--lr_span all_rounds: contradicts --rewind lr, which restarts it each round; leave one out")
    parse_optim_args(args.optim_args)
    check_paths(args)


def check_paths(args: Arguments) -> None:
    """Refuse local paths that do not hold what they should. Raises BadInput."""
    if args.dataset_path not in (None, EMBEDDED) and not Path(str(args.dataset_path)).is_dir():
        raise BadInput(f"--dataset_path {args.dataset_path}: no such directory; it holds train.jsonl and so on")
    if args.dataset_path == EMBEDDED and args.task not in DEMO:
        raise BadInput(f"--dataset_path embedded: has no data for --task {args.task}; take {' or '.join(DEMO)}")
    if args.ticket is not None and not Path(args.ticket).is_file():
        raise BadInput(f"--ticket {args.ticket}: no such file; give a ticket.safetensors")
    model = args.model_name_or_path
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists()
    if model != EMBEDDED and looks_local and not (Path(model) / "config.json").is_file():
        raise BadInput(
            f"--model_name_or_path {model}: no model there (config.json is missing); "
            "give a directory saved by save_pretrained, a Hub name, or --preset demo"
        )


def parse_rewind_step(text: str, steps: int | None) -> int | float:
    """The rewind point in steps; a fraction stays a fraction while `steps` a round is None.

    Raises BadInput for what is neither a whole number of steps nor a fraction below 1, and for
    a point at or past the end of a round.
    """
    try:
        value: int | float = int(text) if text.isdigit() else float(text)
    except ValueError:
        value = -1
    if not (isinstance(value, int) or 0 <= value < 1) or value < 0:
        raise BadInput(f"--rewind_step {text}: give a whole number of steps (100) or a fraction below 1 (0.05)")
    if steps is None:
        return value
    point = round(value * steps) if isinstance(value, float) else value
    if point and point >= steps:
        raise BadInput(f"--rewind_step {text}: a round has {steps} steps; give a smaller number or a fraction")
    return point


def parse_optim_args(text: str | None) -> dict[str, Any]:
    """`'momentum=0.9,nesterov=true'` as keyword arguments. Raises BadInput."""
    pairs: dict[str, Any] = {}
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        key, _, value = part.partition("=")
        try:
            pairs[key] = {"true": True, "false": False}.get(value.lower()) if value.isalpha() else float(value)
        except ValueError:
            pairs[key] = None
        if pairs[key] is None:
            raise BadInput(f"--optim_args {text}: {part!r} is not NAME=NUMBER or NAME=true; see the optimizer")
    return pairs


def exit_on_bad_input(command: Callable[[], None]) -> NoReturn:
    """Run a command; BadInput becomes one `error: …` line a node and exit code 2."""
    try:
        command()
    except BadInput as problem:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("error:", " ".join(str(problem).split()), file=sys.stderr, flush=True)
        sys.exit(2)
    sys.exit(0)

"""Checks of flags that need neither data nor model."""

import errno
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lth_scale.config import files, run_files
from lth_scale.config.arguments import Arguments, Training, Transfer
from lth_scale.config.defaults import DEMO, ELSEWHERE, EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.parsers import RANGES, check_ranges
from lth_scale.config.registry import REGISTRIES, parse_with

MOST_ROUNDS = 1_000
LARGEST_STEP = 2**24  # examples a device and optimizer step: their row numbers are held in memory


def check(args: Training) -> None:
    """Refuse values out of range and flags that contradict each other. Raises BadInput."""
    check_ranges(args, RANGES)
    examples = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if examples > LARGEST_STEP:
        raise BadInput(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps}: makes {examples:,} "
            f"examples a step with --per_device_train_batch_size {args.per_device_train_batch_size}; "
            f"give fewer, at most {LARGEST_STEP:,} in all"
        )
    if args.bf16 and args.fp16:
        raise BadInput("--bf16 --fp16: both are set; keep one")
    check_regexes(args.ignore or ())
    options = parse_optim_args(args.optim_args, args.optim)
    if options.get("nesterov") and (not options.get("momentum") or options.get("dampening")):
        raise BadInput(
            f"--optim_args {args.optim_args}: nesterov needs a momentum and no dampening; change one of them"
        )
    if args.fresh_head and args.task != "mlm":
        raise BadInput(
            f"--fresh_head: is of --task mlm; the head of --task {args.task} is fresh anyway: leave it out"
        )
    if args.keep_head and args.task == "mlm":
        raise BadInput(
            "--keep_head: --task mlm trains the checkpoint's own head anyway; leave it out"
        )
    if isinstance(args, Arguments):
        check_search(args)
    if isinstance(args, Transfer):
        check_transfer(args)
    check_paths(args)


def check_regexes(ignore: Sequence[str]) -> None:
    """Refuse what is no regular expression. Raises BadInput."""
    for regex in ignore:
        try:
            re.compile(regex)
        except (re.error, OverflowError, RecursionError) as problem:
            raise BadInput(
                f"--ignore {regex}: is no regular expression of Python ({problem}); give one such as 'pooler'"
            ) from None


def check_rounds(args: Arguments, start: float = 0.0) -> None:
    """Refuse a search of too many rounds, from a ticket of sparsity `start`. Raises BadInput."""
    rounds = REGISTRIES["schedule"][args.schedule].count(
        args.target_sparsity, args.prune_rate, start
    )
    if rounds > MOST_ROUNDS:
        counted = f"{rounds:,.0f}" if rounds < 1e15 else "more than 1e15"
        raise BadInput(
            f"--prune_rate {args.prune_rate}: makes {counted} rounds up to --target_sparsity "
            f"{args.target_sparsity}, and a search has {MOST_ROUNDS:,} at most; "
            "give a larger rate, such as 0.1"
        )


def check_search(args: Arguments) -> None:
    """Refuse flags of a search that contradict each other. Raises BadInput."""
    if not args.ticket:  # else `check_rounds` is called once its sparsity is known
        check_rounds(args)
    parse_rewind_step(args.rewind_step, steps=None)
    for point in points(args.keep_theta):
        parse_rewind_step(point, steps=None, name="keep_theta")
    if args.rewind != "weights" and parse_rewind_step(args.rewind_step, steps=None) != 0:
        raise BadInput(
            f"--rewind_step {args.rewind_step}: has no meaning with --rewind {args.rewind}; leave one out"
        )
    if args.rewind == "lr" and args.lr_span == "all_rounds":
        raise BadInput(
            "--lr_span all_rounds: contradicts --rewind lr, which restarts it each round; leave one out"
        )
    score, pattern = (
        REGISTRIES["score"][args.score],
        parse_with(REGISTRIES["pattern"], args.pattern),
    )
    if args.dense and score.accumulate:
        raise BadInput(
            f"--dense: --score {args.score} needs totals of round 0, which are not kept; "
            "drop --dense, or use --score magnitude"
        )
    for flag_name, what in (("dense", "round 0"), ("early_bird", "each round")):
        if getattr(args, flag_name) and args.lr_span == "all_rounds":
            raise BadInput(
                f"--{flag_name}: needs {what} to be trained by itself; give --lr_span round"
            )
    if score.accumulate and (args.max_steps == 0 or args.fp16):
        raise BadInput(
            f"--score {args.score}: sums gradients over training; "
            "use --max_steps above 0, and --bf16 instead of --fp16"
        )
    if args.target_sparsity < pattern.least_sparsity:
        raise BadInput(
            f"--target_sparsity {args.target_sparsity}: --pattern {args.pattern} is reached at "
            f"{pattern.least_sparsity:g}; use that or more"
        )


def check_transfer(args: Transfer) -> None:
    """Refuse flags of a transfer that contradict each other. Raises BadInput."""
    controls = REGISTRIES["control"]
    without = [name for name, control in controls.items() if not control.needs_ticket]
    if args.target_sparsity is not None and args.ticket:
        raise BadInput(
            f"--target_sparsity {args.target_sparsity}: the ticket has its own; leave one out"
        )
    if args.target_sparsity is not None and args.control not in without:
        raise BadInput(
            f"--target_sparsity {args.target_sparsity}: --control {args.control} makes no mask; give --ticket, "
            f"or --control {', '.join(without)}"
        )
    if args.control in without and args.target_sparsity is None and not args.ticket:
        raise BadInput(
            f"--control {args.control}: how many weights to prune is not said; give --ticket FILE or "
            "--target_sparsity"
        )
    if args.scope and not (controls[args.control].by_scope and args.target_sparsity):
        raise BadInput(
            f"--scope {args.scope}: is of --control one_shot with --target_sparsity; leave it out"
        )
    if args.connectivity and len(args.seeds) < 2:
        raise BadInput(
            f"--connectivity: joins two seeds, and there is one ({args.seeds[0]}); give --seeds 1 2"
        )


def points(text: str | None) -> list[str]:
    """The rewind points of --keep_theta."""
    return [point.strip() for point in (text or "").split(",") if point.strip()]


def check_paths(args: Training) -> None:
    """Refuse local paths that do not hold what they should. Raises BadInput."""
    for name in ("output_dir", "dataset_path", "model_name_or_path"):
        if getattr(args, name) == "":
            raise BadInput(f"--{name} '': is empty; give a value, or leave it out")
    if args.dataset_path not in (None, EMBEDDED) and not Path(str(args.dataset_path)).is_dir():
        raise BadInput(
            f"--dataset_path {args.dataset_path}: no such directory; it holds train.jsonl and so on"
        )
    if args.dataset_path == EMBEDDED and args.task not in DEMO:
        raise BadInput(
            f"--dataset_path embedded: has no data for --task {args.task}; take {' or '.join(DEMO)}"
        )
    for name, remedy in (("ticket", "a ticket.safetensors"), ("theta", "a theta.safetensors")):
        value = getattr(args, name, None)
        try:
            if value is not None:
                files.check_regular(Path(str(value)))
        except OSError as problem:
            absent = problem.errno in (errno.ENOENT, errno.ENOTDIR) or Path(str(value)).is_dir()
            why = "no such file" if absent else problem.strerror
            raise BadInput(f"--{name} {value}: {why}; give {remedy}") from None
    for name in ("dense", "compare_with"):
        value = getattr(args, name, None)
        if value is None:
            continue
        if not (Path(value) / "complete").is_file():
            raise BadInput(
                f"--{name} {value}: no finished run lies there; give the --output_dir of one"
            )
        try:
            run_files.check_whole(Path(value))
        except ValueError as problem:
            raise BadInput(
                f"--{name} {value}: {problem}; put back a copy of it, or give another run"
            ) from None
    check_model(args.model_name_or_path)


def check_model(model: str) -> None:
    """Refuse a directory that holds no model, or a pipe in the place of a file. Raises BadInput."""
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists()
    if model != EMBEDDED and looks_local and not (Path(model) / "config.json").is_file():
        raise BadInput(
            f"--model_name_or_path {model}: no model there (config.json is missing); "
            "give a directory saved by save_pretrained, a Hub name, or --preset demo"
        )
    try:
        if model != EMBEDDED and looks_local:
            files.check_model(Path(model))
    except OSError as problem:
        raise BadInput(
            f"--model_name_or_path {problem.filename}: {problem.strerror}; put a file there"
        ) from None


def parse_rewind_step(text: str, steps: int | None, name: str = "rewind_step") -> int | float:
    """The rewind point in steps; a fraction stays a fraction while `steps` a round is None.

    Raises BadInput for what is neither a whole number of steps nor a fraction below 1, and for
    a point at or past the end of a round.
    """
    try:
        value: int | float = int(text) if text.isdigit() else float(text)
    except ValueError:
        value = -1
    if not (isinstance(value, int) or 0 <= value < 1) or value < 0:
        raise BadInput(
            f"--{name} {text}: give a whole number of steps (100) or a fraction below 1 (0.05)"
        )
    if steps is None:
        return value
    point = round(value * steps) if isinstance(value, float) else value
    if point and point >= steps:
        raise BadInput(
            f"--{name} {text}: a round has {steps} steps; give a smaller number or a fraction"
        )
    return point


def parse_optim_args(text: str | None, optim: str) -> dict[str, Any]:
    """`'momentum=0.9,nesterov=true'` as keyword arguments of the optimizer. Raises BadInput."""
    pairs: dict[str, Any] = {}
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        try:
            if name in pairs:
                raise ValueError("is given twice; keep one")
            pairs[name] = _optim_arg(name, value, optim)
        except ValueError as problem:
            raise BadInput(f"--optim_args {text}: {part!r} {problem}") from None
    return pairs


def _optim_arg(name: str, value: str, optim: str) -> float | bool:
    if not value:
        raise ValueError("is not NAME=NUMBER or NAME=true; see the optimizer")
    if name in ELSEWHERE:
        raise ValueError(f"is decided by {ELSEWHERE[name]}; give that")
    options = REGISTRIES["optimizer"][optim].options
    if name not in options:
        known = ", ".join(options)
        raise ValueError(f"is not an option of --optim {optim}; use {known}")
    return options[name](name, value)

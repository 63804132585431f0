"""Checks of flags that need neither data nor model."""

import re
from collections.abc import Sequence
from typing import Any

from lth_scale.config.arguments import Arguments, Training, Transfer
from lth_scale.config.defaults import ELSEWHERE
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import check_ranges
from lth_scale.config.registry import REGISTRIES, parse_with

MOST_ROUNDS = 1_000
LARGEST_STEP = 2**24  # examples per device and optimizer step, whose row numbers are in memory


def check_training(args: Training) -> None:
    """Raise BadInput for values out of range and flags that contradict each other."""
    check_ranges(args)
    examples = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if examples > LARGEST_STEP:
        raise BadInput(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps}: {examples:,} "
            f"examples per step with --per_device_train_batch_size "
            f"{args.per_device_train_batch_size}; use at most {LARGEST_STEP:,} in total"
        )
    if args.bf16 and args.fp16:
        raise BadInput("--bf16 --fp16: mutually exclusive; use one")
    check_regexes(args.ignore or ())
    options = parse_optim_args(args.optim_args, args.optim)
    if options.get("nesterov") and (not options.get("momentum") or options.get("dampening")):
        raise BadInput(
            f"--optim_args {args.optim_args}: nesterov requires a momentum and no dampening; "
            "change one of them"
        )
    if args.fresh_head and args.task != "mlm":
        raise BadInput(
            f"--fresh_head: only for --task mlm; --task {args.task} always has a fresh head: "
            "omit the flag"
        )
    if args.keep_head and args.task == "mlm":
        raise BadInput("--keep_head: --task mlm always trains the checkpoint's head; omit the flag")


def check_regexes(ignore: Sequence[str]) -> None:
    """Raise BadInput for an invalid regular expression."""
    for regex in ignore:
        try:
            re.compile(regex)
        except (re.error, OverflowError, RecursionError) as problem:
            raise BadInput(
                f"--ignore {regex}: not a Python regular expression ({problem}); "
                "use one such as 'pooler'"
            ) from None


def check_rounds(args: Arguments, start: float = 0.0) -> None:
    """Raise BadInput for a search of too many rounds, from a ticket of sparsity `start`."""
    rounds = REGISTRIES["schedule"][args.schedule].count(
        args.target_sparsity, args.prune_rate, start
    )
    if rounds > MOST_ROUNDS:
        counted = f"{rounds:,.0f}" if rounds < 1e15 else "more than 1e15"
        raise BadInput(
            f"--prune_rate {args.prune_rate}: takes {counted} rounds to --target_sparsity "
            f"{args.target_sparsity}, and a search has at most {MOST_ROUNDS:,}; "
            "use a larger rate, such as 0.1"
        )


def check_search(args: Arguments) -> None:
    """Raise BadInput for flags of a search that contradict each other."""
    if not args.ticket:  # else the search calls `check_rounds` with the ticket's sparsity
        check_rounds(args)
    for point in points(args.keep_theta):
        parse_rewind_step(point, steps=None, name="keep_theta")
    check_rewinding(args)
    for name, trained in (("dense", "round 0"), ("early_bird", "each round")):
        if getattr(args, name) and args.lr_span == "all_rounds":
            raise BadInput(
                f"--{name}: requires a schedule of its own for {trained}; use --lr_span round"
            )
    if REGISTRIES["score"][args.score].accumulate:
        check_accumulated_score(args)
    pattern = parse_with(REGISTRIES["pattern"], args.pattern)
    if args.target_sparsity < pattern.least_sparsity:
        raise BadInput(
            f"--target_sparsity {args.target_sparsity}: --pattern {args.pattern} starts at "
            f"{pattern.least_sparsity:g}; use that or more"
        )


def check_rewinding(args: Arguments) -> None:
    """Raise BadInput for flags of rewinding that contradict each other."""
    point = parse_rewind_step(args.rewind_step, steps=None)
    if args.rewind != "weights" and point != 0:
        raise BadInput(
            f"--rewind_step {args.rewind_step}: has no effect with --rewind {args.rewind}; "
            "omit one of them"
        )
    if args.rewind == "lr" and args.lr_span == "all_rounds":
        raise BadInput(
            "--lr_span all_rounds: contradicts --rewind lr, which restarts the schedule each "
            "round; omit one of them"
        )


def check_accumulated_score(args: Arguments) -> None:
    """Raise BadInput for flags that contradict a score that is summed over training."""
    if args.dense:
        raise BadInput(
            f"--dense: --score {args.score} needs sums over round 0, which are not stored; omit "
            "--dense or use --score magnitude"
        )
    if args.max_steps == 0 or args.fp16:
        raise BadInput(
            f"--score {args.score}: sums gradients over training; use --max_steps above 0, and "
            "--bf16 instead of --fp16"
        )


def check_transfer(args: Transfer) -> None:
    """Raise BadInput for flags of a transfer that contradict each other."""
    controls = REGISTRIES["control"]
    without_ticket = [name for name in controls if not controls[name].needs_ticket]
    if args.target_sparsity is not None and args.ticket:
        raise BadInput(
            f"--target_sparsity {args.target_sparsity}: the ticket has its own; "
            "omit one of --target_sparsity and --ticket"
        )
    if args.target_sparsity is not None and args.control not in without_ticket:
        raise BadInput(
            f"--target_sparsity {args.target_sparsity}: --control {args.control} needs a ticket; "
            f"specify --ticket, or use --control {', '.join(without_ticket)}"
        )
    if args.control in without_ticket and args.target_sparsity is None and not args.ticket:
        raise BadInput(
            f"--control {args.control}: no sparsity; specify --ticket FILE or --target_sparsity"
        )
    if args.scope and not (controls[args.control].by_scope and args.target_sparsity):
        raise BadInput(
            f"--scope {args.scope}: only for --control one_shot with --target_sparsity; omit it"
        )
    if args.connectivity and len(args.seeds) < 2:
        raise BadInput(
            f"--connectivity: requires two seeds, but there is one ({args.seeds[0]}); "
            "use --seeds 1 2"
        )


def points(text: str | None) -> list[str]:
    """Return the rewind points of --keep_theta."""
    return [point.strip() for point in (text or "").split(",") if point.strip()]


def parse_rewind_step(text: str, steps: int | None, name: str = "rewind_step") -> int | float:
    """Return the rewind point in steps, or a fraction as it is if the `steps` of a round are None.

    Raises BadInput unless it is a number of steps or a fraction below 1, and for a point at or
    past the end of a round.
    """
    try:
        value: int | float = int(text) if text.isdigit() else float(text)
    except ValueError:
        value = -1
    if not (isinstance(value, int) or 0 <= value < 1) or value < 0:
        raise BadInput(
            f"--{name} {text}: not a rewind point; use a number of steps (100) or a fraction "
            "below 1 (0.05)"
        )
    if steps is None:
        return value
    point = round(value * steps) if isinstance(value, float) else value
    if point and point >= steps:
        raise BadInput(
            f"--{name} {text}: a round has {steps} steps; use a smaller number or a fraction"
        )
    return point


def parse_optim_args(text: str | None, optim: str) -> dict[str, Any]:
    """Return `'momentum=0.9,nesterov=true'` as keyword arguments. Raises BadInput."""
    options: dict[str, Any] = {}
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        try:
            if name in options:
                raise ValueError("is given twice; keep one")
            options[name] = parse_optim_arg(name, value, optim)
        except ValueError as problem:
            raise BadInput(f"--optim_args {text}: {part!r} {problem}") from None
    return options


def parse_optim_arg(name: str, value: str, optim: str) -> float | bool:
    """Return the value of one optimizer argument. Raises ValueError."""
    if not value:
        raise ValueError("is not NAME=NUMBER or NAME=true; use the optimizer's arguments")
    if name in ELSEWHERE:
        raise ValueError(f"is set by another flag; use {ELSEWHERE[name]}")
    options = REGISTRIES["optimizer"][optim].options
    if name not in options:
        known = ", ".join(options)
        raise ValueError(f"is not an argument of --optim {optim} here; use {known}")
    return options[name](name, value)

"""Checks of flags that need neither data nor model, and of local paths that flags name."""

import errno
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lth_scale.config import files, run_files
from lth_scale.config.arguments import Arguments, Training, Transfer, flags_in
from lth_scale.config.defaults import DEMO, ELSEWHERE, EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import Group, check_ranges
from lth_scale.config.registry import REGISTRIES, parse_with

MOST_ROUNDS = 1_000
_EVALUATION_FILES = ("validation_file", "test_file")
_LARGEST_STEP = 2**24  # examples per device and optimizer step, whose row numbers are in memory


def check_training(args: Training) -> None:
    """Raise BadInput for values out of range and flags that contradict each other."""
    check_ranges(args)
    batch, micro_steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    _refuse(
        {
            f"--gradient_accumulation_steps {micro_steps}: {batch * micro_steps:,} examples per "
            f"step with --per_device_train_batch_size {batch}; use at most {_LARGEST_STEP:,} in "
            "total": batch * micro_steps > _LARGEST_STEP,
            "--bf16 --fp16: mutually exclusive; use one": args.bf16 and args.fp16,
        }
    )
    check_own_data(args)
    check_regexes(args.ignore or ())
    options = parse_optim_args(args.optim_args, args.optim)
    is_plain = not options.get("momentum") or options.get("dampening")
    with_head = [name for name, kind in REGISTRIES["task"].items() if kind.own_head]
    has_head = args.task in with_head
    _refuse(
        {
            f"--optim_args {args.optim_args}: nesterov requires a momentum and no dampening; "
            "change one of them": options.get("nesterov") and is_plain,
            f"--fresh_head: only for --task {' or '.join(with_head)}; --task {args.task} always "
            "has a fresh head: omit the flag": args.fresh_head and not has_head,
            f"--keep_head: --task {args.task} always trains the checkpoint's head; "
            "omit the flag": args.keep_head and has_head,
        }
    )


def check_own_data(args: Training) -> None:
    """Raise BadInput for flags about the user's own data that --task or each other rule out."""
    kinds: dict[str, Any] = {**REGISTRIES["task"], args.task: REGISTRIES["task"][args.task]}
    given = [flag for flag in sorted(flags_in(Group.OWN_DATA)) if getattr(args, flag)]
    for flag in given:
        takers = [name for name, kind in kinds.items() if flag in kind.data_flags]
        if args.task not in takers:
            raise BadInput(
                f"--{flag} {getattr(args, flag)}: --task {args.task} does not take it; use it with "
                f"--task {', '.join(takers)}, or omit it"
            )
    ways = [flag for flag in ("dataset_path", "dataset_name", "train_file") if getattr(args, flag)]
    files_given = [flag for flag in _EVALUATION_FILES if getattr(args, flag)]
    percentage = args.validation_split_percentage
    _refuse(
        {
            f"--task {args.task}: reads your own data; specify --train_file FILE, --dataset_name "
            "NAME or --dataset_path DIR": kinds[args.task].needs_data and not ways,
            f"{_as_flags(args, ways)}: each says where the data is; use one": len(ways) > 1,
            f"{_as_flags(args, files_given)}: --dataset_path has its own files; omit one of "
            "them": files_given and args.dataset_path,
            "--dataset_config_name: is of --dataset_name; omit it": args.dataset_config_name
            and not args.dataset_name,
            f"--validation_split_percentage {percentage}: --validation_file has the validation "
            "rows; omit one of them": percentage and args.validation_file,
            f"--train_file {args.train_file}: no validation rows; specify --validation_file, or "
            "--validation_split_percentage such as 10": args.train_file
            and not (args.validation_file or percentage),
            f"--greater_is_better {args.greater_is_better}: is about --metric_name; specify it, or "
            "omit the flag": args.greater_is_better and not args.metric_name,
            f"--metric_name {args.metric_name}: whether more is better is not known; specify "
            "--greater_is_better true or false": args.metric_name
            and not args.greater_is_better
            and args.metric_name not in REGISTRIES["metric"],
        }
    )


def _as_flags(args: Training, names: Sequence[str]) -> str:
    return " ".join(f"--{name} {getattr(args, name)}" for name in names)


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
    count = REGISTRIES["schedule"][args.schedule].count
    rounds = count(args.target_sparsity, args.prune_rate, start)
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
    rewind_step = parse_rewind_step(args.rewind_step, steps=None)
    one_schedule = args.lr_span == "all_rounds"
    accumulates = REGISTRIES["score"][args.score].accumulate
    least = parse_with(REGISTRIES["pattern"], args.pattern).least_sparsity
    _refuse(
        {
            f"--rewind_step {args.rewind_step}: has no effect with --rewind {args.rewind}; "
            "omit one of them": rewind_step != 0 and args.rewind != "weights",
            "--lr_span all_rounds: contradicts --rewind lr, which restarts the schedule each "
            "round; omit one of them": one_schedule and args.rewind == "lr",
            "--dense: requires a schedule of its own for round 0; use --lr_span round": one_schedule
            and args.dense,
            "--early_bird: requires a schedule of its own for each round; "
            "use --lr_span round": one_schedule and args.early_bird,
            f"--test_file {args.test_file}: round 0 of --dense is not trained here, so its network "
            "is not there to predict; omit one of them": args.test_file and args.dense,
            f"--dense: --score {args.score} needs sums over round 0, which are not stored; "
            "omit --dense or use --score magnitude": accumulates and args.dense,
            f"--score {args.score}: sums gradients over training; use --max_steps above 0, and "
            "--bf16 instead of --fp16": accumulates and (args.max_steps == 0 or args.fp16),
            f"--target_sparsity {args.target_sparsity}: --pattern {args.pattern} starts at "
            f"{least:g}; use that or more": args.target_sparsity < least,
        }
    )


def check_transfer(args: Transfer) -> None:
    """Raise BadInput for flags of a transfer that contradict each other."""
    controls, control, sparsity = REGISTRIES["control"], args.control, args.target_sparsity
    without_ticket = [name for name, entry in controls.items() if not entry.needs_ticket]
    is_given, stands_alone = sparsity is not None, control in without_ticket
    has_budget = controls[control].budget is not None
    _refuse(
        {
            f"--target_sparsity {sparsity}: the ticket has its own; "
            "omit one of --target_sparsity and --ticket": is_given and args.ticket,
            f"--target_sparsity {sparsity}: --control {control} needs a ticket; specify --ticket, "
            f"or use --control {', '.join(without_ticket)}": is_given and not stands_alone,
            f"--control {control}: no sparsity; specify --ticket FILE or "
            "--target_sparsity": stands_alone and not is_given and not args.ticket,
            f"--control {control}: trains for as long as the search of a ticket; specify --ticket "
            "FILE": has_budget and not args.ticket,
            f"--connectivity: --control {control} has a training of its own; omit one of "
            "them": has_budget and args.connectivity,
            f"--scope {args.scope}: only for --control one_shot with --target_sparsity; "
            "omit it": args.scope and not (controls[control].by_scope and sparsity),
            f"--test_file {args.test_file}: predicted by lth_scale.imp only; omit "
            "it": args.test_file,
            f"--connectivity: requires two seeds, but there is one ({args.seeds[0]}); "
            "use --seeds 1 2": args.connectivity and len(args.seeds) < 2,
        }
    )


def _refuse(contradictions: dict[str, object]) -> None:
    """Raise BadInput with the first message whose condition holds."""
    for message, holds in contradictions.items():
        if holds:
            raise BadInput(message)


def points(text: str | None) -> list[str]:
    """The rewind points of --keep_theta."""
    return [point.strip() for point in (text or "").split(",") if point.strip()]


def parse_rewind_step(text: str, steps: int | None, name: str = "rewind_step") -> int | float:
    """The rewind point in steps, or a fraction unchanged if the `steps` of a round are None.

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
    """`'momentum=0.9,nesterov=true'` as keyword arguments. Raises BadInput."""
    parsers, options = REGISTRIES["optimizer"][optim].options, dict[str, Any]()
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        try:
            if name in options:
                raise ValueError("is given twice; keep one")
            if not value:
                raise ValueError("is not NAME=NUMBER or NAME=true; use the optimizer's arguments")
            if name in ELSEWHERE:
                raise ValueError(f"is set by another flag; use {ELSEWHERE[name]}")
            if name not in parsers:
                known = ", ".join(parsers)
                raise ValueError(f"is not an argument of --optim {optim} here; use {known}")
            options[name] = parsers[name](name, value)
        except ValueError as problem:
            raise BadInput(f"--optim_args {text}: {part!r} {problem}") from None
    return options


def check_paths(args: Training) -> None:
    """Raise BadInput for a local path that does not hold what its flag needs."""
    for name in ("output_dir", "dataset_path", "model_name_or_path"):
        if getattr(args, name) == "":
            raise BadInput(f"--{name} '': empty value; specify one or omit the flag")
    data = args.dataset_path
    if data == EMBEDDED and args.task not in DEMO:
        raise BadInput(
            f"--dataset_path embedded: no data for --task {args.task}; use {' or '.join(DEMO)}"
        )
    if data not in (None, EMBEDDED) and not Path(str(data)).is_dir():
        raise BadInput(
            f"--dataset_path {data}: no such directory; use one that contains train.jsonl and so on"
        )
    for name in ("ticket", "theta"):
        if (path := getattr(args, name, None)) is not None:
            _check_file(name, path, f"a {name}.safetensors")
    for name in ("train_file", "validation_file", "test_file"):
        if (path := getattr(args, name)) is not None:
            _check_file(name, path, "a file of rows")
    for name in ("dense", "compare_with"):
        if (path := getattr(args, name, None)) is not None:
            _check_run(name, path)
    _check_model(args.model_name_or_path)


def _check_file(name: str, path: str, expected: str) -> None:
    try:
        files.check_regular(Path(path))
    except OSError as problem:
        is_absent = problem.errno in (errno.ENOENT, errno.ENOTDIR) or Path(path).is_dir()
        why = "no such file" if is_absent else problem.strerror
        raise BadInput(f"--{name} {path}: {why}; use {expected}") from None


def _check_run(name: str, run: str) -> None:
    if not Path(run, "complete").is_file():
        raise BadInput(
            f"--{name} {run}: not a finished run; use the --output_dir of a finished one"
        )
    try:
        run_files.check_whole(Path(run))
    except ValueError as problem:
        raise BadInput(
            f"--{name} {run}: {problem}; restore a copy of it, or use another run"
        ) from None


def _check_model(model: str) -> None:
    """Raise BadInput for a directory that holds no model, or holds something else as its files."""
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists()
    if model == EMBEDDED or not looks_local:
        return
    if not (Path(model) / "config.json").is_file():
        raise BadInput(
            f"--model_name_or_path {model}: no model found (config.json is missing); "
            "use a directory saved by save_pretrained, a Hub name, or --preset demo"
        )
    try:
        files.check_model(Path(model))
    except OSError as problem:
        raise BadInput(
            f"--model_name_or_path {problem.filename}: {problem.strerror}; replace it with a file"
        ) from None

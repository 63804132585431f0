"""Checks that local paths hold what their flags need."""

import errno
from pathlib import Path

from lth_scale.config import files, run_files
from lth_scale.config.arguments import Training
from lth_scale.config.defaults import DEMO, EMBEDDED
from lth_scale.config.errors import BadInput


def check_paths(args: Training) -> None:
    """Raise BadInput for a local path that does not hold what its flag needs."""
    for name in ("output_dir", "dataset_path", "model_name_or_path"):
        if getattr(args, name) == "":
            raise BadInput(f"--{name} '': empty value; specify one or omit the flag")
    check_data(args.task, args.dataset_path)
    for name in ("ticket", "theta"):
        check_file(name, getattr(args, name, None))
    for name in ("dense", "compare_with"):
        check_run(name, getattr(args, name, None))
    check_model(args.model_name_or_path)


def check_data(task: str, path: str | None) -> None:
    """Raise BadInput for a --dataset_path that is no directory or has no data for the task."""
    if path not in (None, EMBEDDED) and not Path(str(path)).is_dir():
        raise BadInput(
            f"--dataset_path {path}: no such directory; specify one that contains train.jsonl and "
            "so on"
        )
    if path == EMBEDDED and task not in DEMO:
        raise BadInput(
            f"--dataset_path embedded: no data for --task {task}; use {' or '.join(DEMO)}"
        )


def check_file(name: str, path: str | None) -> None:
    """Raise BadInput if the file of --ticket or --theta cannot be read."""
    try:
        if path is not None:
            files.check_regular(Path(path))
    except OSError as problem:
        is_absent = problem.errno in (errno.ENOENT, errno.ENOTDIR) or Path(str(path)).is_dir()
        why = "no such file" if is_absent else problem.strerror
        raise BadInput(f"--{name} {path}: {why}; specify a {name}.safetensors") from None


def check_run(name: str, path: str | None) -> None:
    """Raise BadInput if --dense or --compare_with is no finished, intact run."""
    if path is None:
        return
    if not (Path(path) / "complete").is_file():
        raise BadInput(
            f"--{name} {path}: not a finished run; specify the --output_dir of a finished one"
        )
    try:
        run_files.check_whole(Path(path))
    except ValueError as problem:
        raise BadInput(
            f"--{name} {path}: {problem}; restore it from a copy or specify another run"
        ) from None


def check_model(model: str) -> None:
    """Raise BadInput for a directory that holds no model, or holds something else as its files."""
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists()
    if model == EMBEDDED or not looks_local:
        return
    if not (Path(model) / "config.json").is_file():
        raise BadInput(
            f"--model_name_or_path {model}: no model found (config.json is missing); "
            "specify a directory saved by save_pretrained, a Hub name, or --preset demo"
        )
    try:
        files.check_model(Path(model))
    except OSError as problem:
        raise BadInput(
            f"--model_name_or_path {problem.filename}: {problem.strerror}; replace it with a file"
        ) from None

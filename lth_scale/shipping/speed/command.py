"""What `python -m lth_scale.speed` does: time networks in every backend on this machine."""

from dataclasses import asdict
from pathlib import Path

from lth_scale.config.errors import BadInput
from lth_scale.config.startup import first_imports
from lth_scale.config.texts import printable, quoted
from lth_scale.shipping.speed.flags import FILES, Speed, check_output


def run(args: Speed) -> None:
    """Time all targets, write the report and print it. Raises BadInput."""
    page = time_targets(args) / "speed.md"
    print(printable(page.read_text()))
    print(f"report   {quoted(page)}")


def time_targets(args: Speed) -> Path:
    """Load and check all targets, time them, and write the report.

    Returns the directory of the report. Raises BadInput.
    """
    with first_imports():
        import torch

        from lth_scale.shipping.export.source import load_source
        from lth_scale.shipping.speed import accuracy, report, timing
        from lth_scale.training.preparation import quiet_libraries

    quiet_libraries()
    has_gpu = torch.cuda.is_available()
    if args.device == "cuda" and not has_gpu:
        raise BadInput("--device cuda: no CUDA GPU found; use --device cpu")
    device = ("cuda" if has_gpu else "cpu") if args.device == "auto" else args.device
    check_output(args.directory)
    flags = asdict(args)
    of_task = ("task", "dataset_path", "max_eval_samples")
    task_flags = {name: flags[name] for name in of_task if flags[name]}
    loaded, notes = [], []
    for target in args.targets:
        source = load_source(target)
        for length in args.sequence_length or ():
            accuracy.text_inputs(source, 1, length)
        task, note = accuracy.load_task(source, task_flags)
        loaded.append((source, task))
        notes += [note] if note else []
    cells = [
        cell for source, task in loaded for cell in timing.time_target(source, task, args, device)
    ]
    del flags["targets"]
    report.write(args.directory, cells, notes, flags)
    if args.report_to == "mlflow":
        from lth_scale.tracking.mlflow import runs  # imports mlflow
        from lth_scale.tracking.mlflow.settings import local_store

        output = args.directory
        paths = [path for name in FILES if (path := output / name).is_file()]
        metrics = report.metrics(cells)
        runs.try_to_log(
            local_store(output),
            lambda store: runs.log_report(store, output.name, paths, "speed", metrics),
        )
    return args.directory

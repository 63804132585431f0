"""Whether a run can start or continue in an output directory. Changes nothing there.

Refused are another run, files that were not written by lth_scale, links, and damaged files.
"""

import os
from fnmatch import fnmatch
from pathlib import Path

from lth_scale.config import directories, files, locks, run_files
from lth_scale.config.arguments import Training, Transfer, flags_with, same_value
from lth_scale.config.errors import BadInput
from lth_scale.config.redaction import redacted
from lth_scale.config.resolution import launched_precision
from lth_scale.tracking import provenance
from lth_scale.tracking.provenance import Facts
from lth_scale.tracking.trackers import TRACKERS

# What arguments.json of every version has.
REQUIRED = {"task", "model_name_or_path", "output_dir", "seed", "max_steps", "versions"}
# What a run writes into its directory.
NAMES = (
    *("arguments.json", "rounds", "seeds", "controls", "connectivity", "figures", "complete"),
    *("results.json", "controls.json", "connectivity.json", "ticket.safetensors", ".lock"),
    *("theta.safetensors", "theta-[0-9]*.safetensors", "mlflow.json", "mlflow.jsonl", "hub.json"),
)


def check(directory: Path, args: Training) -> None:
    """Raise BadInput if a run of these flags cannot start or continue in its output directory."""
    check_arguments(directory, args)
    _check_lock_and_links(directory)
    TRACKERS[args.report_to].check(directory)
    try:
        run_files.check_whole(directory)
    except ValueError as error:
        raise BadInput(
            f"--output_dir {directory}: {error}; restore it from a copy, or use another directory"
        ) from None
    try:
        directories.check_writable(directory)
    except OSError as error:
        raise BadInput(
            f"--output_dir {directory}: cannot be written ({error.strerror}); use another directory"
        ) from None


def saved_arguments(directory: Path) -> Facts:
    """Return arguments.json of a run, or {} if there is none. Raises BadInput if it is damaged."""
    try:
        saved = {**files.read_json(directory / "arguments.json")}
        provenance.check_types(saved)
        return saved
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(
            f"--output_dir {directory}: arguments.json is damaged; restore it from a copy, or use "
            "another directory"
        ) from error


def check_arguments(directory: Path, args: Training) -> None:
    """Raise BadInput if the directory holds another run, or files that no run wrote."""
    path = directory / "arguments.json"
    saved = saved_arguments(directory) if os.path.lexists(path) else {}
    if not saved.keys() >= REQUIRED or not saved["versions"].get("lth_scale"):
        _check_names(directory)
        return
    if ("seeds" in saved) != isinstance(args, Transfer):
        raise BadInput(
            f"--output_dir {directory}: holds a run of another command; use another directory"
        )
    digests = provenance.digests(args)
    compared = saved.keys() - _may_differ(saved, args)
    compared -= provenance.flags_with_digests(saved, digests)
    differences = [
        f"--{name} was {saved[name]}, is {value}"
        for name, value in redacted(args.as_dict()).items()
        if name in compared and not same_value(name, redacted(saved[name]), value)
    ]
    if differences:
        raise BadInput(
            f"--output_dir {directory}: holds another run ({'; '.join(differences)}); use the "
            "same flags to continue it, or another directory"
        )
    check_facts(directory, {"digests": digests})


def check_facts(directory: Path, facts: Facts) -> None:
    """Raise BadInput if the run in the directory began with other facts of `provenance`."""
    if differences := provenance.differences(saved_arguments(directory), facts):
        raise BadInput(
            f"--output_dir {directory}: holds another run ({'; '.join(differences)}); restore "
            "what it was started with to continue it, or use another directory"
        )


def seeds(args: Training) -> set[int]:
    """Return the seeds of a transfer; none for a search."""
    return {*args.seeds} if isinstance(args, Transfer) else set()


def _may_differ(saved: Facts, args: Training) -> set[str]:
    """Return the flags that may change in a run, or whose earlier value is not known."""
    names = {*flags_with("cosmetic"), *(("seed",) if seeds(args) else ())}
    if "precision" not in saved:
        names |= launched_precision().keys()  # the launcher's was not recorded
    if args.model_revision == saved.get("revisions", {}).get("model", ""):
        names.add("model_revision")  # names the commit that it stood for
    return names


def _check_lock_and_links(directory: Path) -> None:
    lock = directory / ".lock"
    if os.path.lexists(lock) and not locks.is_lock(lock):
        raise BadInput(
            f"--output_dir {directory}: .lock was not written by lth_scale; move it away"
        )
    if link := run_files.find_link(directory):
        raise BadInput(
            f"--output_dir {directory}: {link.relative_to(directory)} is a link, and files in its "
            "target would be changed; replace it with the directory itself"
        )


def _check_names(directory: Path) -> None:
    """Raise BadInput if a new run would overwrite files."""
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    taken = [name for name in names if any(fnmatch(name, pattern) for pattern in NAMES)]
    if ".lock" in taken and locks.is_lock(directory / ".lock"):
        taken.remove(".lock")
    if taken:
        raise BadInput(
            f"--output_dir {directory}: holds {taken[0]}, which was not written by this run; use "
            "another directory"
        )

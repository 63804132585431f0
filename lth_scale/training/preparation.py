"""What a run does before its first stage: load and check everything, and only then write."""

import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
import transformers

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.notices import warn
from lth_scale.distributed import watchdog
from lth_scale.distributed.encoder import base_model
from lth_scale.pruning import prunable_set
from lth_scale.pruning.ticket import Ticket
from lth_scale.tasks import data, registry
from lth_scale.tasks.task import Task
from lth_scale.tracking import console
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.training import environment, networks
from lth_scale.training.networks import Network

Flags = TypeVar("Flags", bound=Training)


def with_earlier_defaults(args: Flags, run_directory: RunDirectory) -> Flags:
    """Return the flags with `keep_head` None if the run was started before there was --keep_head.

    Such a run uses what the checkpoint has of a head.
    """
    arguments = run_directory.saved_arguments()
    if arguments and "keep_head" not in arguments and not args.keep_head:
        return replace(args, keep_head=None)
    return args


def prepare(args: Training, dense: str | None = None, with_teacher: bool = False) -> Network:
    """Load and prepare the network of the flags for its first restart. Raises BadInput.

    dense: --dense of a search. with_teacher: keep a copy to distill from.
    """
    quiet_libraries()
    accelerator = environment.make_accelerator(args)
    watchdog.start(accelerator, args.ddp_timeout)
    task = registry.load_task(args)
    matrices = recorded_prunable_set(args, dense, task) or checked_prunable_set(args, task)
    return networks.prepare(accelerator, task, args, matrices, with_teacher)


def quiet_libraries() -> None:
    """Silence the progress bars and warnings of libraries."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # DeepSpeed's use of it, not the user's.
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)


def recorded_prunable_set(args: Training, dense: str | None, task: Task) -> tuple[str, ...]:
    """Return the prunable set of the tickets in --output_dir, else in --dense, else ().

    Another version may have started the run, with another prunable set. Raises BadInput if the
    tickets are of another network.
    """
    for flag, directory in (("output_dir", args.output_dir), ("dense", dense)):
        tickets = first_tickets(Path(directory)) if directory else []
        if not tickets:
            continue
        names = tuple(Ticket.load(tickets[0]).masks)
        known = dict(base_model(task.model).named_parameters())
        if missing := [name for name in names if name not in known]:
            raise BadInput(
                f"--{flag} {directory}: its tickets prune {missing[0]}, which the model does not "
                "have; specify another directory"
            )
        return names
    return ()


def first_tickets(run: Path) -> list[Path]:
    """Return the ticket of a search's round 0, or those of a transfer's seeds."""
    forms = ("rounds/00/ticket.safetensors", "seeds/*/ticket.safetensors")
    return sorted(path for form in forms for path in run.glob(form))


def checked_prunable_set(args: Training, task: Task) -> tuple[str, ...]:
    """Return the prunable set of a new run, and warn of what is left dense. Raises BadInput."""
    model, ignore = task.model, args.ignore or ()
    prunable_set.check(model, ignore, f"--model_name_or_path {args.model_name_or_path}")
    for warning in (prunable_set.describe_kinds(model), prunable_set.describe_dense(model, ignore)):
        if warning:
            warn(warning)
    return networks.prunable_names(task, args)


def open_run(run_directory: RunDirectory, net: Network, facts: dict[str, Any]) -> None:
    """Write arguments.json, or compare it with that of the run that is resumed.

    facts: what the run depends on, as in `provenance`. Raises BadInput if it was started with
    others.
    """
    run_directory.check_facts(facts)
    if net.accelerator.is_main_process:
        for line in (*run_directory.notices(facts), net.task.remark):
            if line:
                console.print_line(line)
        run_directory.begin(facts)
    net.accelerator.wait_for_everyone()


def provenance_of(net: Network) -> dict[str, Any]:
    """Return the facts of `provenance` that are known once everything is loaded.

    They are the settings in force, the digest of the base model, and the Hub's commits.
    """
    task = net.task
    revisions = {
        "model": task.revision,
        "data": "" if net.args.dataset_path else data.hub_revision(task.train),
    }
    return {
        **environment.settings_in_force(net.accelerator),
        "base_sha256": net.base_sha256,
        "revisions": {name: commit for name, commit in revisions.items() if commit},
    }

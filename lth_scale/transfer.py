"""Train m ⊙ θ on a task, once for each seed, with a fresh head: from a ticket of any task, or a control of it.

`accelerate launch -m lth_scale.transfer --task sst2 --ticket runs/mlm-bert-base-uncased --seeds 1 2 3`
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lth_scale.config import files
from lth_scale.config.arguments import Transfer
from lth_scale.config.errors import BadInput
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.resolution import parse
from lth_scale.config.startup import first_imports
from lth_scale.science.summary import scores_by_seed, show
from lth_scale.shipping import hub
from lth_scale.tracking.trackers import TRACKERS
from lth_scale.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from lth_scale.training.transfer import TransferRun


def transfer(network: "TransferRun") -> None:
    """Train the subnetwork with each seed; a seed that is complete is not trained again."""
    for seed in network.args.seeds:
        if network.is_done_with(seed):
            continue
        network.restart(seed)  # m ⊙ θ, or the control's, under a new head
        network.train()
        network.evaluate()
        network.complete()
    if network.args.connectivity:
        network.connect(*network.args.seeds[:2])


def run(args: Transfer) -> None:
    """Transfer, or go on where that stopped, or show what was found. Raises BadInput."""
    record = RunDirectory.open(args)
    if args.compare_with:
        check_comparable(args, Path(args.compare_with))
    if not record.is_done():
        hub.check(args)
        with first_imports():  # of torch: bad input and finished work do not wait for it
            from lth_scale.training.transfer import TransferRun

        network = TransferRun.open(args, record)
        transfer(network)
        network.close({})
    TRACKERS[args.report_to].flush(record.directory)
    show(record)
    hub.push_when_done(record)


def check_comparable(args: Transfer, other: Path) -> None:
    """Refuse a --compare_with that is no transfer, or one to another task. Raises BadInput."""
    scores_by_seed(other)
    task = files.read_json(other / "arguments.json")["task"]
    if task != args.task:
        raise BadInput(
            f"--compare_with {other}: is a transfer to {task}, this one to {args.task}; give one to the same"
        )


def main() -> None:
    """The command line of `lth_scale.transfer`."""
    run(
        parse(
            None,
            "lth_scale.transfer",
            "Train a subnetwork on a task, from a ticket of any task.",
            Transfer,
        )
    )


if __name__ == "__main__":
    exit_on_bad_input(main)

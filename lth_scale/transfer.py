"""Train m ⊙ θ on a task with a fresh head, once per seed: a ticket of any task, or its control.

`accelerate launch -m lth_scale.transfer --task sst2 --ticket runs/mlm-bert-base-uncased`
"""

from typing import TYPE_CHECKING

from lth_scale.config.arguments import Transfer
from lth_scale.config.command import Command
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.resolution import from_command_line
from lth_scale.config.startup import first_imports
from lth_scale.science.summary import check_comparable, show
from lth_scale.shipping import hub
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.trackers import TRACKERS

if TYPE_CHECKING:
    from lth_scale.training.transfer import TransferRun


def transfer(network: "TransferRun") -> None:
    """Train the subnetwork with each seed. Skips complete seeds."""
    for seed in network.args.seeds:
        if network.is_done_with(seed):
            continue
        for _ in network.restart(seed):  # m ⊙ θ, or the control's, under a new head
            network.train()
            network.evaluate()
        network.complete()
    if network.args.connectivity:
        network.connect(*network.args.seeds[:2])


def run(args: Transfer) -> None:
    """Transfer a ticket; resume a run that was stopped. A finished run is only shown.

    Raises BadInput.
    """
    directory = RunDirectory.open(args)
    check_comparable(args)
    if not directory.is_done():
        hub.check(args)
        with first_imports():  # torch: bad input and finished runs do not wait for it
            from lth_scale.training.transfer import TransferRun

        network = TransferRun.open(args, directory)
        transfer(network)
        network.finish()
    TRACKERS[args.report_to].flush(directory.directory)
    show(directory)
    hub.push_when_done(directory)


COMMAND = Command(
    name="transfer",
    summary="train a ticket, or a control of it, on a task",
    flags=Transfer,
    run=run,
    resolve=from_command_line,
)
main = COMMAND.main


if __name__ == "__main__":
    exit_on_bad_input(main)

"""Iterative magnitude pruning with rewinding: Algorithm 1 of Chen et al., NeurIPS 2020.

`accelerate launch -m lth_scale.imp --task mlm`
"""

from typing import TYPE_CHECKING

from lth_scale.config.arguments import Arguments
from lth_scale.config.command import Command
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.resolution import from_command_line
from lth_scale.config.startup import first_imports
from lth_scale.science.summary import show
from lth_scale.shipping import hub
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.trackers import TRACKERS

if TYPE_CHECKING:
    from lth_scale.training.search import Search


def imp(search: "Search") -> None:
    """Run Algorithm 1, from θ₀ to the ticket of the last sparsity. Skips complete rounds."""
    for k in search.rounds:
        if search.is_complete(k):
            continue
        if k == 0 and search.args.dense:
            search.reuse_dense_round()  # another search has trained this network
        else:
            search.restart(k)  # m ⊙ θᵢ; in round 0, θ₀ under a mask of ones
            for step in search.theta_steps if k == 0 else ():
                search.train(until=step)
                search.keep_theta(step)  # θᵢ
            search.train(until=search.steps)  # θₜ
            search.evaluate()
        search.prune()  # the next mask: without the smallest |θₜ| of those that m keeps
        search.complete()


def compare(search: "Search") -> None:
    """Train the control of --control beside the last tickets, most from the same θᵢ."""
    for k in search.control_rounds:
        if search.is_complete(k, search.args.control):
            continue
        for _ in search.restart_control(k):  # once, or k + 1 times: --control dense_restarts
            search.train(until=search.steps)
            search.evaluate()
        search.complete()


def run(args: Arguments) -> None:
    """Find a ticket and compare it with a control; resume a run that was stopped.

    A finished run is only shown. Raises BadInput.
    """
    directory = RunDirectory.open(args)
    if not directory.is_done():
        hub.check(args)
        with first_imports():  # torch: bad input and finished runs do not wait for it
            from lth_scale.training.search import Search

        search = Search.open(args, directory)
        imp(search)
        compare(search)
        search.finish()
    TRACKERS[args.report_to].flush(directory.directory)
    show(directory)
    hub.push_when_done(directory)


COMMAND = Command(
    name="imp",
    summary="find a lottery ticket by iterative magnitude pruning",
    flags=Arguments,
    run=run,
    resolve=from_command_line,
)
main = COMMAND.main


if __name__ == "__main__":
    exit_on_bad_input(main)

"""Iterative magnitude pruning with rewinding: Algorithm 1 of Chen et al., NeurIPS 2020.

`accelerate launch -m lth_scale.imp --task mlm`
"""

from typing import TYPE_CHECKING

from lth_scale.config.arguments import Arguments
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.resolution import parse
from lth_scale.config.startup import first_imports
from lth_scale.science.summary import show
from lth_scale.shipping import hub
from lth_scale.tracking.trackers import TRACKERS
from lth_scale.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    from lth_scale.training.search import Search


def imp(search: "Search") -> None:
    """Algorithm 1. From θ₀ to the ticket of the last sparsity; a round that is complete is not trained again."""
    for k in search.rounds:
        if search.is_complete(k):
            continue
        if k == 0 and search.args.dense:
            search.reuse_dense_round()  # another search has trained this very network
        else:
            search.restart(k)  # m ⊙ θᵢ; in round 0, θ₀ under a mask of ones
            for step in search.theta_steps if k == 0 else ():
                search.train(until=step)
                search.keep_theta(step)  # θᵢ
            search.train(until=search.steps)  # θₜ
            search.evaluate()
        search.prune()  # the next mask: the smallest |θₜ| among what m keeps
        search.complete()


def compare(search: "Search") -> None:
    """The control of --control at the sparsities of the last tickets, trained from the same θᵢ."""
    for k in search.control_rounds:
        if search.is_complete(k, search.args.control):
            continue
        search.restart_control(k)
        search.train(until=search.steps)
        search.evaluate()
        search.complete()


def run(args: Arguments) -> None:
    """Find a ticket and compare it, or go on where that stopped, or show what was found. Raises BadInput."""
    record = RunDirectory.open(args)
    if not record.is_done():
        hub.check(args)
        with first_imports():  # of torch: bad input and finished searches do not wait for it
            from lth_scale.training.search import Search

        search = Search.open(args, record)
        imp(search)
        compare(search)
        search.finish()
    TRACKERS[args.report_to].flush(record.directory)
    show(record)
    hub.push_when_done(record)


def main() -> None:
    """The command line of `lth_scale.imp`."""
    run(
        parse(
            None,
            prog="lth_scale.imp",
            description="Find a lottery ticket by iterative magnitude pruning.",
        )
    )


if __name__ == "__main__":
    exit_on_bad_input(main)

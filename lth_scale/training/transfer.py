"""The steps of a transfer on a real network, as `lth_scale.transfer` names them."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from safetensors.torch import load_file

from lth_scale.config import files
from lth_scale.config.arguments import Transfer
from lth_scale.config.errors import BadInput
from lth_scale.pruning import threshold
from lth_scale.pruning.prunable_set import digest
from lth_scale.pruning.registries import CONTROLS, Budget, Subnetwork
from lth_scale.pruning.ticket import Ticket
from lth_scale.science import summary
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import TICKET_SPARSITY, Stage
from lth_scale.training import loop, networks, preparation
from lth_scale.training.networks import Weights
from lth_scale.training.run import Run
from lth_scale.training.starting_point import (
    base_sha256_of,
    budget_of,
    check_pattern,
    initial_ticket,
    load_encoder,
    theta_zero,
)

PATH_POINTS = 11  # of linear mode connectivity, including the ends


@dataclass
class TransferRun(Run):
    """A ticket, or a mask of --target_sparsity, trained with one seed after another."""

    args: Transfer
    _: KW_ONLY
    ticket: Ticket

    @classmethod
    def open(cls, args: Transfer, run_directory: RunDirectory) -> "TransferRun":
        """Load and check everything, and only then write. Raises BadInput."""
        args = preparation.with_earlier_defaults(args, run_directory)
        net = preparation.prepare(args)
        ticket = initial_ticket(net)
        budget_of(args, ticket)
        try:
            check_pattern(ticket.arguments["pattern"], ticket, net)
        except BadInput as problem:
            raise BadInput(f"--ticket {args.ticket}: {problem}") from None
        if args.target_sparsity:
            # At random, every matrix to the sparsity: a control needs the counts alone.
            generator, masks = torch.Generator().manual_seed(args.seed), ticket.masks
            noise = {name: torch.rand(masks[name].shape, generator=generator) for name in masks}
            threshold.prune(noise, masks, args.target_sparsity, "layerwise")
        if args.theta:
            load_encoder(args.theta, net)
        ticket = replace(ticket, base_sha256=base_sha256_of(args, net))
        preparation.open_run(run_directory, net, preparation.provenance_of(net))
        run = cls(args, run_directory, net, ticket=ticket)
        run.show_progress(len(args.seeds))
        return run

    def is_done_with(self, seed: int) -> bool:
        """Return True if the seed needs no more work."""
        lacks_network = seed == self.args.seed and self.run_directory.lacks_network()
        return self.run_directory.is_complete(Stage.seed(seed)) and not lacks_network

    def restart(self, seed: int) -> Iterator[None]:
        """Set the network to m ⊙ θ of a seed: a new head, its control and its data order.

        Once for each training: one, or those of the control's budget.
        """
        start, control = self._start_of(seed), self.args.control
        is_own_mask = start.masks is self.ticket.masks
        budget = budget_of(self.args, self.ticket)
        beside = {TICKET_SPARSITY: self.ticket.sparsity} if budget else {}
        ticket = replace(
            self.ticket,
            masks=start.masks,
            threshold=self.ticket.threshold if is_own_mask else 0.0,
            theta_sha256=digest({name: start.matrix(name) for name in start.masks}),
            arguments={**self.ticket.arguments, "seed": seed, "found_by": control, **beside},
        )
        stage = Stage.seed(seed, control)

        def weights(other: int) -> Weights:
            return start.weights if other == seed else self._start_of(other).weights

        yield from self.start_each(stage, weights, ticket, seed, budget or Budget())

    def _start_of(self, seed: int) -> Subnetwork:
        """Return m ⊙ θ with the head that the seed draws, or its control."""
        args, net, model = self.args, self.net, self.net.engine.meta_model
        weights = net.initial
        if seed != args.seed:  # θ₀ with another head
            weights = theta_zero(net, seed)
        if args.theta:
            weights = weights | load_encoder(args.theta, net)
        masks, found = self.ticket.masks, self.ticket.arguments
        start = Subnetwork(weights, masks, net.names, model, found["pattern"], found["scope"])
        return CONTROLS[args.control].make(start, seed)

    def prepare_listeners(self) -> None:
        """Finish the tracker of the previous seed, and open that of this one."""
        for tracker in self.listeners[:-1]:  # the last listener is the progress bars
            tracker.finish({}, summary.report(self.run_directory))
        self.track(replace(self.args, seed=self.stage.number), self.stage_directory)

    def train(self) -> None:
        """Train to the end of the schedule."""
        self.train_to(self.steps, loop.learning_rates(self.args, self.steps))

    def keep(self) -> None:
        """Save what is kept: also the first seed's network if a flag asks for it."""
        super().keep()
        keeps_network = self.args.push_to_hub or self.args.keep_network
        if keeps_network and self.stage.number == self.args.seed:
            self.save_network()

    def connect(self, first: int, second: int) -> None:
        """Linear mode connectivity: train the data orders of two seeds from the start of the first.

        Writes connectivity.json: the scores on the straight line between the two networks, and the
        barrier by the task's first metric. Frankle et al. 2020 (arXiv:1912.05671), section 2.
        """
        start = self._start_of(first)
        ends = [self._trained_end(start, seed) for seed in (first, second)]
        path: list[dict[str, Any]] = []
        for point in range(PATH_POINTS):
            share = point / (PATH_POINTS - 1)
            weights = {
                name: torch.lerp(weight, ends[1][name], share) for name, weight in ends[0].items()
            }
            networks.restart(self.net, weights, start.masks, 0, first)
            path.append({"share": share, "eval": loop.evaluate(self.net).scores})
        if self.is_main:
            scores = [next(iter(point["eval"].values())) for point in path]
            content = {"seeds": [first, second], "barrier": barrier(scores), "path": path}
            files.write_json(self.run_directory.directory / "connectivity.json", content)

    def _trained_end(self, start: Subnetwork, seed: int) -> Weights:
        """Return the weights after training with a seed's data order, from their file if any."""
        path = self.run_directory.directory / f"connectivity/{seed:02d}.safetensors"
        if not path.is_file():
            net = networks.with_seed(self.net, seed)
            networks.restart(net, start.weights, start.masks, 0, seed)
            rate = loop.learning_rates(net.args, net.steps)
            loop.train(net, net.steps, rate, lambda step, loss: None)
            weights = net.engine.full_weights()
            if self.is_main:
                files.write_tensors(path, weights)
        self.net.accelerator.wait_for_everyone()
        return load_file(path)


def barrier(scores: list[float]) -> float:
    """Return the mean of the first and last scores minus the lowest (of errors, in the paper)."""
    return (scores[0] + scores[-1]) / 2 - min(scores)

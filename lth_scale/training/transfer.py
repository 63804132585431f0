"""The steps of a transfer on a real network, as `lth_scale.transfer` names them."""

from dataclasses import dataclass, field, replace

import torch

from lth_scale.config.arguments import Transfer
from lth_scale.config.errors import BadInput
from lth_scale.pruning import controls, threshold
from lth_scale.pruning.digests import digest
from lth_scale.pruning.registries import CONTROLS
from lth_scale.pruning.ticket import Ticket
from lth_scale.science import summary
from lth_scale.tasks.loading import load_model
from lth_scale.tracking.listeners import Listener
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import Stage
from lth_scale.training import connectivity, networks, optimizers, preparation
from lth_scale.training.encoder_theta import base_sha256_of, load_encoder
from lth_scale.training.listeners import TrackerPerStage, create_listeners, create_tracker
from lth_scale.training.networks import Network, Weights
from lth_scale.training.run import Run
from lth_scale.training.tickets import check_pattern, initial_ticket


@dataclass
class TransferRun(Run):
    """A ticket, or a mask of --target_sparsity, trained with one seed after another."""

    args: Transfer
    ticket: Ticket = field(kw_only=True)

    @classmethod
    def open(cls, args: Transfer, run_directory: RunDirectory) -> "TransferRun":
        """Load and check everything, and only then write. Raises BadInput."""
        args = preparation.with_earlier_defaults(args, run_directory)
        net = preparation.prepare(args)
        ticket = initial_ticket(net)
        try:
            check_pattern(ticket.arguments["pattern"], ticket, net)
        except BadInput as problem:
            raise BadInput(f"--ticket {args.ticket}: {problem}") from None
        if args.target_sparsity:
            prune_at_random(ticket, args.target_sparsity, args.seed)
        if args.theta:
            load_encoder(args.theta, net)
        ticket = replace(ticket, base_sha256=base_sha256_of(args, net))
        preparation.open_run(run_directory, net, preparation.provenance_of(net))

        def tracker_of(stage: Stage) -> Listener:
            seed, directory = replace(args, seed=stage.number), run_directory.path(stage)
            return create_tracker(seed, directory, net.task)

        listeners = create_listeners(
            run_directory,
            net,
            stages=len(args.seeds),
            create=lambda: TrackerPerStage(tracker_of, lambda: summary.report(run_directory)),
        )
        return cls(args, run_directory, net, listeners, ticket=ticket)

    def stage_of(self, seed: int) -> Stage:
        """Return the stage of a seed."""
        return Stage.seed(seed, self.args.control)

    def is_done_with(self, seed: int) -> bool:
        """Return True if the seed needs no more work."""
        lacks_network = seed == self.args.seed and self.run_directory.lacks_network()
        return self.run_directory.is_complete(self.stage_of(seed)) and not lacks_network

    def restart(self, seed: int) -> None:
        """Set the network to m ⊙ θ of a seed: a new head, its control and its data order."""
        start = self._start_of(seed)
        is_own_mask = start.masks is self.ticket.masks
        ticket = replace(
            self.ticket,
            masks=start.masks,
            threshold=self.ticket.threshold if is_own_mask else 0.0,
            theta_sha256=digest({name: start.matrix(name) for name in start.masks}),
            arguments={**self.ticket.arguments, "seed": seed, "found_by": self.args.control},
        )
        self.net = networks.with_seed(self.net, seed)
        self.start(self.stage_of(seed), start.weights, ticket, step=0, seed=seed)

    def _start_of(self, seed: int) -> controls.Subnetwork:
        """Return θ with the head of the seed, under the mask, or the control's of either."""
        args, net = self.args, self.net
        weights = net.initial if seed == args.seed else fresh_weights(net, args, seed)
        if args.theta:
            weights = weights | load_encoder(args.theta, net)
        start = controls.Subnetwork(
            weights,
            self.ticket.masks,
            net.names,
            net.engine.meta_model,
            self.ticket.arguments["pattern"],
            self.ticket.arguments["scope"],
        )
        return CONTROLS[args.control].make(start, seed)

    def train(self) -> None:
        """Train to the end of the schedule."""
        self.train_to(self.steps, optimizers.learning_rates(self.args, self.steps))

    def complete(self) -> None:
        """Write the seed's metrics; keep the first seed's network if a flag asks for it."""
        keeps_network = self.args.push_to_hub or self.args.keep_network
        if keeps_network and self.stage.number == self.args.seed:
            self.save_network()
        super().complete()

    def connect(self, first: int, second: int) -> None:
        """Write connectivity.json of two seeds' data orders, both from the start of the first."""
        start, directory = self._start_of(first), self.run_directory.directory
        connectivity.connect(self.net, start, first, second, directory)


def prune_at_random(ticket: Ticket, sparsity: float, seed: int) -> None:
    """Prune a ticket in place, each matrix to the sparsity: a control needs the counts alone."""
    generator = torch.Generator().manual_seed(seed)
    noise = {
        name: torch.rand(mask.shape, generator=generator) for name, mask in ticket.masks.items()
    }
    threshold.prune(noise, ticket.masks, sparsity, "layerwise")


def fresh_weights(net: Network, args: Transfer, seed: int) -> Weights:
    """Return θ₀ with the head that `seed` draws, by names in the model."""
    model = net.engine.meta_model
    args = replace(args, seed=seed)
    loaded = load_model(args, type(model), net.task.tokenizer, config=model.config)
    return {name: weight.detach() for name, weight in loaded.model.named_parameters()}

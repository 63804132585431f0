"""The steps of a transfer on a real network: what `transfer.py` names."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from lth_scale.config import files
from lth_scale.config.arguments import Transfer
from lth_scale.config.errors import BadInput
from lth_scale.distributed.encoder import base_model
from lth_scale.pruning import controls, threshold
from lth_scale.pruning.prunable_set import transposed
from lth_scale.pruning.registries import CONTROLS, check_pattern
from lth_scale.pruning.digests import digest
from lth_scale.pruning.ticket import Ticket
from lth_scale.science import summary
from lth_scale.tasks.loading import load_model
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import Stage
from lth_scale.training import evaluation, loop, networks, optimizers, run
from lth_scale.training.run import Run, first_ticket

log = logging.getLogger("lth_scale")
PATH_POINTS = 11  # of the line between two networks, its ends included


@dataclass
class TransferRun(Run):
    """The ticket of --ticket or --target_sparsity, trained with one seed after another."""

    args: Transfer
    ticket: Ticket = field(default_factory=lambda: Ticket({}))

    @classmethod
    def begin(cls, args: Transfer, record: RunDirectory) -> "TransferRun":
        """Load everything, check it, and only then write. Raises BadInput."""
        args = run.as_begun(args, record)
        net = run.prepare(args)
        ticket = first_ticket(args, net)
        try:
            shapes = {name: mask.shape for name, mask in ticket.masks.items()}
            check_pattern(ticket.arguments["pattern"], shapes, transposed(net.engine.meta_model))
        except BadInput as problem:
            raise BadInput(f"--ticket {args.ticket}: {problem}") from None
        if args.target_sparsity:
            count = torch.Generator().manual_seed(args.seed)
            noise = {
                name: torch.rand(mask.shape, generator=count) for name, mask in ticket.masks.items()
            }
            threshold.prune(noise, ticket.masks, args.target_sparsity, "layerwise")
        if args.theta:
            theta_of_encoder(args.theta, net)
        ticket = replace(ticket, base_sha256=base_of(args, net))
        listeners = run.begin(replace(args, report_to="none"), record, net)
        network = cls(args, record, net, listeners, ticket=ticket)
        run.bars(network, len(args.seeds))
        return network

    def is_done_with(self, seed: int) -> bool:
        """True where the seed needs no more work."""
        lacks_network = seed == self.args.seed and self.record.lacks_network()
        return (
            self.record.is_complete(Stage("seeds", seed, self.args.control)) and not lacks_network
        )

    def restart(self, seed: int) -> None:
        """Put the network at m ⊙ θ of this seed: a new head, the control's mask or weights, its own data order."""
        made = self._made(seed)
        ticket = replace(
            self.ticket,
            masks=made.masks,
            threshold=self.ticket.threshold if made.masks is self.ticket.masks else 0.0,
            theta_sha256=digest({name: made.matrix(name) for name in made.masks}),
            arguments={**self.ticket.arguments, "seed": seed, "found_by": self.args.control},
        )
        self.net = networks.with_seed(self.net, seed)
        stage = Stage("seeds", seed, self.args.control)
        self._track(seed, self.record.at(stage))
        self.start(stage, made.weights, ticket, step=0, seed=seed)

    def _made(self, seed: int) -> controls.Subnetwork:
        weights = (
            self.net.initial if seed == self.args.seed else fresh_weights(self.net, self.args, seed)
        )
        if self.args.theta:
            weights = weights | theta_of_encoder(self.args.theta, self.net)
        how = (self.ticket.arguments["pattern"], self.ticket.arguments["scope"])
        start = controls.Subnetwork(
            weights, self.ticket.masks, self.net.names, self.net.engine.meta_model, *how
        )
        return CONTROLS[self.args.control].make(start, seed)

    def _track(self, seed: int, directory: Path) -> None:
        """One MLflow run for each seed."""
        if self.is_main and self.args.report_to == "mlflow":
            from lth_scale.tracking.mlflow.tracker import (
                MlflowTracker,  # imports mlflow, which takes its time
            )

            for listener in [
                listener for listener in self.listeners if isinstance(listener, MlflowTracker)
            ]:
                listener.finish({}, summary.report(self.record))
                self.listeners.remove(listener)
            directory.mkdir(parents=True, exist_ok=True)
            self.listeners.append(
                MlflowTracker(replace(self.args, seed=seed), self.record, directory, self.net.task)
            )

    def train(self) -> None:
        """Train to the end of the schedule."""
        self.train_to(self.steps, optimizers.learning_rates(self.args, self.steps))

    def complete(self) -> None:
        """Write what the seed gave; with --keep_network or --push_to_hub the first seed's network."""
        if (
            self.args.push_to_hub or self.args.keep_network
        ) and self.stage.number == self.args.seed:
            self.save_network()
        super().complete()

    def connect(self, first: int, second: int) -> None:
        """Linear mode connectivity: two networks trained from one start, head included, with two seeds' data orders.

        The barrier is the mean of the ends' scores minus the lowest score on the straight line between them (Frankle
        et al. 2020, arXiv:1912.05671, section 2, there in errors). Writes connectivity.json.
        """
        where, made = self.record.directory / "connectivity", self._made(first)
        ends = []
        for seed in (first, second):
            end = where / f"{seed:02d}.safetensors"
            if not end.is_file():
                net = networks.with_seed(self.net, seed)
                networks.restart(net, made.weights, made.masks, 0, seed)
                loop.train(
                    net,
                    self.steps,
                    optimizers.learning_rates(self.args, self.steps),
                    lambda step, loss: None,
                )
                weights = net.engine.full_weights()
                if self.is_main:
                    files.write_tensors(end, weights)
            self.net.accelerator.wait_for_everyone()
            ends.append(load_file(end))
        path: list[dict[str, Any]] = []
        for point in range(PATH_POINTS):
            share = point / (PATH_POINTS - 1)
            weights = {
                name: torch.lerp(weight, ends[1][name], share) for name, weight in ends[0].items()
            }
            networks.restart(self.net, weights, made.masks, 0, first)
            path.append({"share": share, "eval": evaluation.evaluate(self.net)})
        if self.is_main:
            files.write_json(
                self.record.directory / "connectivity.json",
                {
                    "seeds": [first, second],
                    "barrier": barrier([next(iter(each["eval"].values())) for each in path]),
                    "path": path,
                },
            )


def barrier(scores: list[float]) -> float:
    """Mean of the first and the last score minus the lowest of all."""
    return (scores[0] + scores[-1]) / 2 - min(scores)


def fresh_weights(net: networks.Network, args: Transfer, seed: int) -> networks.Weights:
    """θ₀ with the head that `seed` draws, by names in the model."""
    meta_model: Any = net.engine.meta_model
    model = load_model(
        replace(args, seed=seed), type(meta_model), net.task.tokenizer, config=meta_model.config
    ).model
    return {name: weight.detach() for name, weight in model.named_parameters()}


def base_of(args: Transfer, net: networks.Network) -> str:
    """The base_sha256 of the encoder that is trained, which the ticket is found to belong to. Raises BadInput.

    Under --theta that is the base of its search, and the very θᵢ that the ticket names needs no further check.
    """
    if not args.theta:
        run.check_base(args, net)
        return net.task.base_sha256
    if args.ticket and is_theta_of(found := Ticket.load(args.ticket), args.theta, net):
        if found.is_of_other_weights(net.task.base_sha256) and net.accelerator.is_main_process:
            log.warning(
                "--theta %s: is the very θᵢ of the ticket, and takes the place of the other weights of %r",
                args.theta,
                args.model_name_or_path,
            )
        return found.base_sha256
    with safe_open(args.theta, "pt") as file:
        known = {"base_sha256": "", "base_model": "", **(file.metadata() or {})}
    run.refuse_other_weights(
        f"--theta {args.theta}", known["base_sha256"], known["base_model"], args, net
    )
    run.check_base(args, net)
    return known["base_sha256"] or net.task.base_sha256


def is_theta_of(ticket: Ticket, path: str, net: networks.Network) -> bool:
    """True where the prunable weights in a theta.safetensors are those that the ticket has the digest of."""
    weights, (name, full) = load_file(path), next(iter(net.names.items()))
    names = {other: full.removesuffix(name) + other for other in ticket.masks}
    if not weights.keys() >= set(names.values()):
        return False
    return digest({name: weights[full] for name, full in names.items()}) == ticket.theta_sha256


def theta_of_encoder(path: str, net: networks.Network) -> networks.Weights:
    """The encoder's weights in a theta.safetensors of a search, which may have another head. Raises BadInput."""
    meta_model = net.engine.meta_model
    encoder = base_model(meta_model)
    ours = {
        name
        for name, weight in meta_model.named_parameters()
        if any(weight is own for own in encoder.parameters())
    }
    try:
        kept = {name: weight for name, weight in load_file(path).items() if name in ours}
    except (OSError, SafetensorError) as problem:
        raise BadInput(
            f"--theta {path}: cannot be read ({problem}); give a theta.safetensors"
        ) from problem
    shapes = dict(meta_model.named_parameters())
    wrong = [
        name
        for name in sorted(ours)
        if "pooler." not in name and getattr(kept.get(name), "shape", None) != shapes[name].shape
    ]
    if wrong:
        raise BadInput(
            f"--theta {path}: has no {wrong[0]} of this model's shape; give θᵢ of the same encoder"
        )
    return {name: weight for name, weight in kept.items() if weight.shape == shapes[name].shape}

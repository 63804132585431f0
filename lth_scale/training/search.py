"""The steps of Algorithm 1 on a real network: what `imp.py` names, done with training, threshold and record."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lth_scale.config import files, listing
from lth_scale.config.arguments import Arguments, Training, flags_with, same_value
from lth_scale.config.checks import check_rounds, parse_rewind_step, points
from lth_scale.config.errors import BadInput
from lth_scale.config.redaction import redacted
from lth_scale.config.resolution import launched_precision
from lth_scale.pruning import controls, patterns, prunable_set, scores
from lth_scale.pruning.early_bird import CHECKS, EarlyBird
from lth_scale.pruning.registries import CONTROLS
from lth_scale.pruning.schedules import sparsities
from lth_scale.pruning.ticket import Ticket, digest
from lth_scale.science import figures
from lth_scale.tracking import provenance
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import a_round
from lth_scale.training import networks, optimizers, run
from lth_scale.training.run import Run, check_base, first_ticket, of_base

log = logging.getLogger("lth_scale")
CONTROLLED_ROUNDS = 2
# A search may take its round 0 from another where these agree; what they find afterwards may differ.
SHARED = {spec.name for spec in fields(Training)} - flags_with("cosmetic") | {
    "lr_span",
    "early_bird",
}


@dataclass
class Search(Run):
    """One search: its ladder of sparsities, and the points of round 0 at which θᵢ is kept, the rewind point's first."""

    args: Arguments
    ladder: list[float] = field(default_factory=list)
    kept_steps: list[int] = field(default_factory=list)
    moved: dict[str, Tensor] = field(default_factory=dict)
    bird: EarlyBird | None = None

    @classmethod
    def begin(cls, args: Arguments, record: RunDirectory) -> "Search":
        """Load everything, check it, and only then write. Raises BadInput."""
        args = run.as_begun(args, record)
        net = run.prepare(args)
        start = first_ticket(args, net)
        shapes = {name: mask.shape for name, mask in start.masks.items()}
        patterns.check(args.pattern, shapes, prunable_set.transposed(net.engine.meta_model))
        if args.ticket and args.pattern not in (
            "unstructured",
            Ticket.load(args.ticket).arguments.get("pattern"),
        ):
            raise BadInput(
                f"--pattern {args.pattern}: the ticket of --ticket was not found under it; leave one out"
            )
        check_rounds(args, start.sparsity)
        check_base(args, net)
        ladder = sparsities(args.schedule, args.target_sparsity, args.prune_rate, start.sparsity)
        kept = [
            int(parse_rewind_step(point, net.steps))
            for point in (args.rewind_step, *points(args.keep_theta))
        ]
        if args.dense:
            check_dense(args, kept[0], run.depends_on(args, net))
        search = cls(
            args,
            record,
            net,
            run.begin(args, record, net, ladder=ladder),
            ladder=ladder,
            kept_steps=kept,
        )
        run.bars(search, len(search.rounds) + len(search.controlled_rounds))
        return search

    @property
    def rounds(self) -> range:
        """0, the dense network, to K."""
        return range(len(self.ladder))

    @property
    def controlled_rounds(self) -> range:
        """The rounds whose sparsity the control is trained at."""
        return self.rounds[1:][-CONTROLLED_ROUNDS:] if self.args.control != "none" else range(0)

    @property
    def rewind_step(self) -> int:
        """i of θᵢ."""
        return self.kept_steps[0]

    @property
    def is_last(self) -> bool:
        """True in the round after which nothing is pruned."""
        return self.stage.number + 1 == len(self.ladder)

    def restart(self, k: int) -> None:
        """Put the network at the start of round k: m ⊙ θᵢ, or as --rewind says."""
        keeps_weights = self.args.rewind != "weights"
        ticket, weights = first_ticket(self.args, self.net), self.net.initial
        self.net.initial = {}
        if k > 0:
            ticket = Ticket.load(self.record.at(a_round(k)) / "ticket.safetensors")
            weights = load_file(self.weights_file(k - 1)) if keeps_weights else self._theta(ticket)
            self._learn_from_dense()
        if self._moves:
            self.moved = {
                name: torch.zeros_like(piece.master()) for name, piece in self.net.targets.items()
            }
            self.net.on_gradients = lambda rate: scores.accumulate(
                self.moved, self.net.targets, rate
            )
        self.bird = None
        self.start(
            a_round(k),
            weights,
            ticket,
            step=0 if k == 0 or keeps_weights else self.rewind_step,
            seed=self.args.seed + (k if keeps_weights else 0),
            consumed=k * self.steps if keeps_weights else 0,
        )

    def _theta(self, ticket: Ticket) -> networks.Weights:
        """θᵢ as the ticket knows it by its digest. Raises BadInput where the file was altered."""
        weights = load_file(self.theta_file())
        if (
            digest({name: weights[full] for name, full in self.net.names.items()})
            != ticket.theta_sha256
        ):
            raise BadInput(
                f"--output_dir {self.record.directory}: theta.safetensors was altered; put back a copy of it, or give "
                "another directory"
            )
        return weights

    def extras(self) -> dict[str, Tensor]:
        """What movement has summed and what early bird has seen, this rank's parts."""
        moved = {f"moved/{name}": value for name, value in self.moved.items()}
        return moved | (self.bird.state() if self.bird else {})

    def take(self, extras: dict[str, Tensor]) -> None:
        """Go on with what `extras` gave."""
        for name, value in self.moved.items():
            value.copy_(extras[f"moved/{name}"])
        if "distances" in extras:
            self.bird = EarlyBird(self.net.masks, self.net.engine.ranks, extras)

    @property
    def _moves(self) -> bool:
        return self.args.score == "movement"

    def _learn_from_dense(self) -> None:
        if self.args.distill and not self.net.taught:
            networks.teach(
                self.net, load_file(self.record.at(a_round(0)) / "model/model.safetensors")
            )

    def restart_control(self, k: int) -> None:
        """Put the network at the control of round k: θᵢ with a mask, or under the mask with weights, not found."""
        found = Ticket.load(self.record.at(a_round(k)) / "ticket.safetensors")
        how = (self.args.pattern, self.args.scope)
        start = controls.Start(
            self._theta(found), found.masks, self.net.names, self.net.engine.meta_model, *how
        )
        made = CONTROLS[self.args.control].make(start, self.args.seed)
        arguments = {**found.arguments, "found_by": self.args.control}
        ticket = replace(found, masks=made.masks, threshold=0.0, arguments=arguments)
        self._learn_from_dense()
        stage, self.bird = a_round(k, self.args.control), None
        self.start(stage, made.weights, ticket, step=self.rewind_step, seed=self.args.seed)

    @property
    def theta_steps(self) -> list[int]:
        """The steps of round 0 at which θᵢ is kept."""
        return sorted({*self.kept_steps})

    def adopt(self, k: int) -> None:
        """Take round 0 and θᵢ from the search of --dense, which has trained the same network."""
        dense = RunDirectory(Path(str(self.args.dense)), self.args)
        weights = load_file(dense.at(a_round(0)) / "model/model.safetensors")
        ticket = Ticket.load(dense.at(a_round(0)) / "ticket.safetensors")
        self.start(
            a_round(k),
            weights,
            replace(ticket, arguments=first_ticket(self.args, self.net).arguments),
            step=self.steps,
            seed=self.args.seed,
        )
        row = files.read_json(dense.at(a_round(0)) / "metrics.json")
        self.scores, self.net.began = row["eval"], self.steps - row["steps"]
        self.net.losses += row["train_loss"] * row["steps"] * self.args.gradient_accumulation_steps
        self._keep_theta(load_file(theta_of(dense.directory, self.rewind_step)), self.rewind_step)

    def train(self, until: int) -> None:
        """Train to step `until` with the round's learning rates, or until --early_bird sees the mask stand still."""
        rate = self._rate()
        if not (self.args.early_bird and until == self.steps and not self.is_last):
            return self.train_to(until, rate)
        self.bird = self.bird or EarlyBird(self.net.masks, self.net.engine.ranks)
        first = self.theta_steps[-1] if self.stage.number == 0 else self.net.began
        stops = sorted(
            {first + -(-(until - first) * check // CHECKS) for check in range(1, CHECKS + 1)}
        )
        for stop in stops:
            if stop <= self.bird.step or self.bird.is_still():
                continue  # looked at before a checkpoint
            self.train_to(stop, rate)
            masks = {name: mask.clone() for name, mask in self.net.masks.items()}
            self._prune(masks)
            if self.bird.settled(masks, stop):
                return

    def _rate(self) -> Callable[[int], float]:
        if self.args.lr_span == "round":
            return optimizers.learning_rates(self.args, self.steps)
        own = self.steps - self.rewind_step
        rate = optimizers.learning_rates(self.args, self.rewind_step + own * len(self.ladder))
        return lambda step: rate(self.stage.number * own + step)

    def keep_theta(self, step: int) -> None:
        """Write θᵢ, which every later round starts from, and its digest into the ticket; once."""
        if self.net.step == step:
            self._keep_theta(self.net.engine.full_weights(), step)

    def _keep_theta(self, weights: networks.Weights, step: int) -> None:
        if not self.is_main:
            return
        files.write_tensors(self.theta_file(step), weights, of_base(self.args, self.net))
        if step == self.rewind_step:
            theta = digest({name: weights[full] for name, full in self.net.names.items()})
            replace(Ticket.load(self.ticket_file), theta_sha256=theta).save(self.ticket_file)

    def prune(self) -> None:
        """Find the next round's mask from the weights as trained, and write it."""
        if not self.is_last:
            cut = self._prune(self.net.masks)
            masks = self.net.engine.gather(self.net.masks, self.net.targets)
        if not self.is_main:
            return
        found = Ticket.load(self.ticket_file)
        if not self.is_last:
            found = replace(found, masks=masks, threshold=cut)
            found.save(self.record.at(a_round(self.stage.number + 1)) / "ticket.safetensors")
        found.save(self.record.directory / "ticket.safetensors")

    def _prune(self, masks: dict[str, Any]) -> float:
        """Update this rank's parts of the masks in place to the next sparsity; return the threshold."""
        args, engine, targets = self.args, self.net.engine, self.net.targets
        values = (
            self.moved if self._moves else {name: piece.master() for name, piece in targets.items()}
        )
        layout = patterns.oriented(
            prunable_set.transposed(engine.meta_model),
            lambda name, part: engine.all_gather(part, targets[name]),
            lambda name, whole: targets[name].cut(whole),
        )
        sparsity, score = self.ladder[self.stage.number + 1], scores.SCORES[args.score]
        return patterns.prune(
            values, masks, sparsity, args.scope, args.pattern, engine.ranks, layout, score
        )

    def complete(self) -> None:
        """Write what the round gave, and mark it complete."""
        searched, k = self.stage.control == "none", self.stage.number
        if searched:
            self._save_network()
        super().complete()
        if self.is_main and searched and k > self._kept_networks:
            self.record.drop_networks(a_round(k - 1))

    @property
    def _kept_networks(self) -> int:
        """How many of the first rounds keep their networks: the dense one may be needed again."""
        return 1 if self.args.keep_theta or self.args.distill else 0

    def _save_network(self) -> None:
        """The subnetwork as trained; and by parameter, where the next round goes on from it."""
        weights = self.save_network()
        if self.is_main and self.args.rewind != "weights":
            files.write_tensors(self.weights_file(self.stage.number), weights)

    def finish(self) -> None:
        """Draw the pictures, close the runs, and mark the search done."""
        pictures = {}
        if self.is_main:
            for k in self.rounds[self._kept_networks : -1]:  # a kill may have left some
                if (self.record.at(a_round(k)) / "model" / listing.LISTING).is_file():
                    self.record.drop_networks(a_round(k))
            last = Ticket.load(self.record.directory / "ticket.safetensors")
            pictures = figures.draw(self.record, last.layer_sparsity())
        self.close(pictures)

    def theta_file(self, step: int | None = None) -> Path:
        """Where θᵢ lies: that of the rewind point, or another one that --keep_theta names."""
        where = self.record.directory
        return (
            where / "theta.safetensors"
            if step in (None, self.rewind_step)
            else where / f"theta-{step}.safetensors"
        )

    def weights_file(self, k: int) -> Path:
        """Where the trained weights of round k lie, under --rewind none and lr."""
        return self.record.at(a_round(k)) / "weights.safetensors"


def theta_of(directory: Path, step: int) -> Path:
    """The file of θᵢ at `step` in the directory of a search that has trained its round 0."""
    arguments = files.read_json(directory / "arguments.json")
    row = files.read_json(directory / "rounds/00/metrics.json")
    own = parse_rewind_step(arguments["rewind_step"], row["steps"])
    return directory / ("theta.safetensors" if own == step else f"theta-{step}.safetensors")


def check_dense(args: Arguments, step: int, facts: dict[str, Any]) -> None:
    """Refuse a --dense whose round 0 was trained otherwise, or of which too little was kept. Raises BadInput.

    facts: those of this search, of `trial.depends_on`.
    """
    directory = Path(str(args.dense))
    try:
        before = {**files.read_json(directory / "arguments.json")}
        provenance.check_kinds(before)
        theta = theta_of(directory, step)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BadInput(
            f"--dense {directory}: is no search, or a damaged one; give the directory of lth_scale.imp"
        ) from problem
    now = redacted(args.as_dict())
    shared = SHARED & before.keys() - ({} if "precision" in before else launched_precision()).keys()
    digests = provenance.digests(replace(args, dense=None))
    shared -= provenance.told_by_content(before, digests)
    differ = [
        f"--{name} was {before[name]}, is {now[name]}"
        for name in sorted(shared)
        if not same_value(name, before[name], now[name])
    ]
    facts = {"digests": digests, **facts}
    differ += provenance.differences(before, facts)
    if differ:
        raise BadInput(
            f"--dense {directory}: was trained otherwise ({'; '.join(differ)}); use the same flags"
        )
    if not (theta.is_file() and (directory / "rounds/00/model/model.safetensors").is_file()):
        raise BadInput(
            f"--dense {directory}: has not kept its round 0 and θᵢ at step {step}; search there with --keep_theta "
            f"{args.rewind_step}"
        )
    for line in provenance.unknown(before, facts):
        log.warning("--dense %s: %s", directory, line)

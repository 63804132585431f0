"""The steps of Algorithm 1 on a real network, as `lth_scale.imp` names them."""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lth_scale.config import files, manifest
from lth_scale.config.arguments import Arguments
from lth_scale.config.checks import parse_rewind_step, points
from lth_scale.config.errors import BadInput
from lth_scale.pruning.early_bird import CHECKS, EarlyBird
from lth_scale.pruning.patterns import Orientation, PruningStep
from lth_scale.pruning.prunable_set import digest, transposed
from lth_scale.pruning.registries import CONTROLS, SCORES, Subnetwork, parse_pattern, sparsities
from lth_scale.pruning.ticket import Ticket
from lth_scale.science import figures
from lth_scale.tracking import predictions
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import TICKET_SPARSITY, Stage, has_constant_prediction
from lth_scale.training import answers, loop, networks, preparation
from lth_scale.training.loop import Evaluation
from lth_scale.training.networks import Weights
from lth_scale.training.run import Run
from lth_scale.training.starting_point import (
    base_metadata,
    budget_of,
    check_dense,
    check_ticket,
    initial_ticket,
    theta_file,
    theta_file_of_search,
    theta_zero,
)

CONTROL_ROUNDS = 2
ACCUMULATED = "moved/"  # begins the names of accumulated scores in checkpoints of every version
TICKET, WEIGHTS, NETWORK = "ticket.safetensors", "weights.safetensors", "model/model.safetensors"


@dataclass
class Search(Run):
    """A search for a ticket.

    ladder: the sparsity of each round. rewind_step: i of θᵢ; theta_steps: the steps of round 0 at
    which θᵢ is kept, in order. accumulated: of this rank's pieces, the totals that a score such as
    accumulated_taylor sums up in training. early_bird: watches the mask of the round under
    --early_bird.
    """

    args: Arguments
    _: KW_ONLY
    ladder: list[float]
    rewind_step: int
    theta_steps: list[int]
    accumulated: dict[str, Tensor] = field(default_factory=dict)
    early_bird: EarlyBird | None = None

    @classmethod
    def open(cls, args: Arguments, run_directory: RunDirectory) -> "Search":
        """Load and check everything, and only then write. Raises BadInput."""
        args = preparation.with_earlier_defaults(args, run_directory)
        net = preparation.prepare(args, args.dense, with_teacher=args.distill)
        start = initial_ticket(net)
        check_ticket(start, net, args)
        budget_of(args, start)
        ladder = sparsities(args.schedule, args.target_sparsity, args.prune_rate, start.sparsity)
        theta_points = (args.rewind_step, *points(args.keep_theta))
        theta_steps = [int(parse_rewind_step(point, net.steps)) for point in theta_points]
        facts = preparation.provenance_of(net)
        if args.dense:
            check_dense(args, theta_steps[0], facts)
        preparation.open_run(run_directory, net, {**facts, "ladder": ladder})
        search = cls(
            args,
            run_directory,
            net,
            ladder=ladder,
            rewind_step=theta_steps[0],
            theta_steps=sorted({*theta_steps}),
        )
        search.track(args, run_directory.directory)
        search.show_progress(len(search.rounds) + len(search.control_rounds))
        return search

    @property
    def rounds(self) -> range:
        """Rounds 0, the dense network, to K."""
        return range(len(self.ladder))

    @property
    def control_rounds(self) -> range:
        """The rounds at whose sparsity the control is trained."""
        return self.rounds[1:][-CONTROL_ROUNDS:] if self.args.control != "none" else range(0)

    @property
    def _is_last(self) -> bool:
        """True in the round after which nothing is pruned."""
        return self.stage.number + 1 == len(self.ladder)

    @property
    def _is_reference(self) -> bool:
        """True while a control with a budget trains, under a schedule of its own."""
        return CONTROLS[self.stage.control].budget is not None

    def restart(self, k: int) -> None:
        """Set the network to the start of round k: m ⊙ θᵢ, or as --rewind says."""
        keeps_weights = self.args.rewind != "weights"
        weights, self.net.initial = self.net.initial, {}
        ticket = self._ticket(k) if k > 0 else initial_ticket(self.net)
        if k > 0:
            trained = self._round(k - 1) / WEIGHTS
            weights = load_file(trained) if keeps_weights else self._theta(ticket)
            self._set_teacher()
        self._start_accumulating()
        self.early_bird = None
        step = 0 if k == 0 or keeps_weights else self.rewind_step
        earlier_rounds = k if keeps_weights else 0
        seed, offset = self.args.seed + earlier_rounds, earlier_rounds * self.steps
        self.start(Stage.round(k), weights, ticket, step, seed, offset)

    def _round(self, k: int) -> Path:
        return self.run_directory.path(Stage.round(k))

    def _ticket(self, k: int) -> Ticket:
        return Ticket.load(self._round(k) / TICKET)

    def _theta(self, ticket: Ticket) -> Weights:
        """Load θᵢ and compare its digest with the ticket's. Raises BadInput if it was altered."""
        step = self.rewind_step
        weights = load_file(theta_file(self.run_directory.directory, step, step))
        if self._theta_sha256(weights) != ticket.theta_sha256:
            raise BadInput(
                f"--output_dir {self.run_directory.directory}: theta.safetensors was altered; "
                "restore a copy of it, or use another directory"
            )
        return weights

    def _theta_sha256(self, weights: Weights) -> str:
        return digest({name: weights[full_name] for name, full_name in self.net.names.items()})

    def _start_accumulating(self) -> None:
        if accumulate := SCORES[self.args.score].accumulate:
            targets = self.net.targets
            totals = {name: torch.zeros_like(piece.master()) for name, piece in targets.items()}
            self.accumulated = totals
            self.net.on_gradients = lambda rate: accumulate(totals, targets, rate)

    def _set_teacher(self) -> None:
        if self.args.distill and not self.net.distills:
            networks.set_teacher(self.net, load_file(self._round(0) / NETWORK))

    def state(self) -> dict[str, Tensor]:
        """Return the accumulated scores and the state of the early bird, of this rank's pieces."""
        accumulated = {f"{ACCUMULATED}{name}": value for name, value in self.accumulated.items()}
        return accumulated | (self.early_bird.state() if self.early_bird else {})

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""
        for name, value in self.accumulated.items():
            value.copy_(state[f"{ACCUMULATED}{name}"])
        if "distances" in state:
            self.early_bird = EarlyBird(self.net.masks, self.net.engine.ranks, state)

    def restart_control(self, k: int) -> Iterator[None]:
        """Set the network to the control of round k, once for each of its trainings."""
        args, ticket = self.args, self._ticket(k)
        self.early_bird = None
        facts: dict[str, Any] = {"found_by": args.control}
        if budget := budget_of(args, ticket):
            self.net.distills = False  # as in round 0
            theta = theta_zero(self.net, args.seed)
            facts[TICKET_SPARSITY] = ticket.sparsity
        else:
            self._set_teacher()
            theta = self._theta(ticket)
        control, stage = self._control_of(ticket, theta), Stage.round(k, args.control)
        own_ticket = replace(
            ticket,
            masks=control.masks,
            threshold=0.0,
            theta_sha256=self._theta_sha256(theta),
            arguments={**ticket.arguments, **facts},
        )
        if budget:
            yield from self.start_each(stage, self._seeded(ticket), own_ticket, args.seed, budget)
        else:
            self.start(stage, control.weights, own_ticket, self.rewind_step, args.seed)
            yield

    def _control_of(self, ticket: Ticket, theta: Weights) -> Subnetwork:
        args, net = self.args, self.net
        model = net.engine.meta_model
        start = Subnetwork(theta, ticket.masks, net.names, model, args.pattern, args.scope)
        return CONTROLS[args.control].make(start, args.seed)

    def _seeded(self, ticket: Ticket) -> Callable[[int], Weights]:
        """Return the function seed → the control's weights with the head that the seed draws."""
        return lambda seed: self._control_of(ticket, theta_zero(self.net, seed)).weights

    def reuse_dense_round(self) -> None:
        """Copy round 0 and θᵢ from the search of --dense, which has trained the same network."""
        dense = Path(str(self.args.dense))
        source = RunDirectory(dense, self.args).path(Stage.round(0))
        arguments = initial_ticket(self.net).arguments
        ticket = replace(Ticket.load(source / TICKET), arguments=arguments)
        weights = load_file(source / NETWORK)
        self.start(Stage.round(0), weights, ticket, self.steps, self.args.seed)
        row = files.read_json(source / "metrics.json")
        examples = predictions.read(source)
        self.evaluation = Evaluation(row["eval"], examples, has_constant_prediction(row))
        self.net.first_step = self.steps - row["steps"]
        micro_steps = row["steps"] * self.args.gradient_accumulation_steps
        self.net.loss_sum += row["train_loss"] * micro_steps
        theta = theta_file_of_search(dense, self.rewind_step)
        self._write_theta(load_file(theta), self.rewind_step)

    def train(self, until: int) -> None:
        """Train to step `until`, or until the mask that --early_bird watches is stable."""
        rate = self._learning_rates()
        is_watched = self.args.early_bird and not (self._is_last or self._is_reference)
        if is_watched and until == self.steps:
            self._train_until_stable(until, rate)
        else:
            self.train_to(until, rate)

    def _train_until_stable(self, until: int, rate: Callable[[int], float]) -> None:
        bird = self.early_bird = self.early_bird or EarlyBird(self.net.masks, self.net.engine.ranks)
        first = self.theta_steps[-1] if self.stage.number == 0 else self.net.first_step
        checks = {first - (first - until) * check // CHECKS for check in range(1, CHECKS + 1)}
        for step in sorted(checks):
            if step <= bird.step or bird.converged:
                continue  # compared before the checkpoint that was resumed
            self.train_to(step, rate)
            masks = {name: mask.clone() for name, mask in self.net.masks.items()}
            self._update_masks(masks)
            if bird.update(masks, step):
                return

    def _learning_rates(self) -> Callable[[int], float]:
        if self.args.lr_span == "round" or self._is_reference:
            return loop.learning_rates(self.args, self.steps)
        steps = self.steps - self.rewind_step
        rate = loop.learning_rates(self.args, self.rewind_step + steps * len(self.ladder))
        return lambda step: rate(self.stage.number * steps + step)

    def keep_theta(self, step: int) -> None:
        """Write θᵢ, from which later rounds start, and its digest into the ticket."""
        if self.net.step == step:  # else it was written before a checkpoint that was resumed
            self._write_theta(self.net.engine.full_weights(), step)

    def _write_theta(self, weights: Weights, step: int) -> None:
        if not self.is_main:
            return
        path = theta_file(self.run_directory.directory, step, self.rewind_step)
        files.write_tensors(path, weights, base_metadata(self.net))
        if step == self.rewind_step:
            ticket = Ticket.load(self.ticket_file)
            replace(ticket, theta_sha256=self._theta_sha256(weights)).save(self.ticket_file)

    def _update_masks(self, masks: dict[str, Tensor]) -> float:
        """Prune this rank's masks in place to the next sparsity, and return the threshold."""
        engine, targets = self.net.engine, self.net.targets
        step = PruningStep(
            self.accumulated or {name: piece.master() for name, piece in targets.items()},
            masks,
            self.ladder[self.stage.number + 1],
            self.args.scope,
            engine.ranks,
            Orientation(
                transposed(engine.meta_model),
                lambda name, part: engine.all_gather(part, targets[name]),
                lambda name, whole: targets[name].cut(whole),
            ),
            SCORES[self.args.score],
        )
        return parse_pattern(self.args.pattern).prune(step)

    def evaluate(self) -> None:
        """Score the trained network; the dense one and the last also predict the test rows."""
        super().evaluate()
        if not self.stage.is_control and self.stage.number in (0, self.rounds[-1]):
            answers.predict(self.net, self.stage_directory)

    def prune(self) -> None:
        """Compute the next round's mask from the trained weights, and write it."""
        if not self._is_last:
            threshold = self._update_masks(self.net.masks)
            masks = self.net.engine.gather(self.net.masks, self.net.targets)
        if self.is_main:
            ticket = Ticket.load(self.ticket_file)
            if not self._is_last:
                rounds = None if ticket.rounds is None else ticket.rounds + 1
                arguments = {**ticket.arguments, "rounds": rounds}
                ticket = replace(ticket, masks=masks, threshold=threshold, arguments=arguments)
                ticket.save(self._round(self.stage.number + 1) / TICKET)
            ticket.save(self.run_directory.directory / TICKET)

    def complete(self) -> None:
        """Save the trained subnetwork and the round's metrics, and mark the round complete."""
        is_control, k = self.stage.is_control, self.stage.number
        if not is_control:
            weights, base = self.save_network(), base_metadata(self.net)
            if self.is_main and self.args.rewind != "weights":  # the next round starts from them
                files.write_tensors(self.stage_directory / WEIGHTS, weights, base)
        super().complete()
        if self.is_main and not is_control and k > self._kept_networks:
            self.run_directory.delete_network(Stage.round(k - 1))

    @property
    def _kept_networks(self) -> int:
        """How many of the first rounds keep their networks: the dense one may be needed again."""
        return 1 if self.args.keep_theta or self.args.distill else 0

    def finish(self) -> None:
        """Draw the figures, finish the listeners, and mark the search done."""
        if self.is_main:
            for k in self.rounds[self._kept_networks : -1]:  # a kill may have left networks
                if (self._round(k) / "model" / manifest.LISTING).is_file():
                    self.run_directory.delete_network(Stage.round(k))
            last = self._round(self.rounds[-1])
            answers.write(self.net.task, self._round(0), last, self.run_directory.directory)
        super().finish()

    def pictures(self) -> dict[str, bytes]:
        """Draw the figures of the search."""
        ticket = Ticket.load(self.run_directory.directory / TICKET)
        return figures.draw_search(self.run_directory, ticket.layer_sparsity())

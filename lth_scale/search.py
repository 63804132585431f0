"""The steps of Algorithm 1 on a real network: what `imp.py` names, done with training, threshold and record."""

import logging
import os
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors.torch import load_file

from lth_scale import controls, figures, files, tasks, terminal, threshold, training
from lth_scale.arguments import COSMETIC, Arguments, BadInput, parse_rewind_step
from lth_scale.record import Record
from lth_scale.schedule import sparsities
from lth_scale.ticket import Ticket, digest
from lth_scale.training import Net

CONTROLLED_ROUNDS = 2


@dataclass
class Search:
    """One search: the network, its ladder of sparsities, and the round that is being trained."""

    args: Arguments
    record: Record
    net: Net
    ladder: list[float]
    rewind_step: int
    listeners: list[Any]
    k: int = 0
    control: str = "none"
    started: float = 0.0
    loss: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def begin(cls, args: Arguments, record: Record) -> "Search":
        """Load everything, check it, and only then write. Raises BadInput."""
        quiet_libraries()
        accelerator = training.make_accelerator(args)
        task = tasks.load(args)
        net = training.prepare(accelerator, task, args)
        ladder = sparsities(args.schedule, args.target_sparsity, args.prune_rate, first_ticket(args, net).sparsity)
        rewind_step = parse_rewind_step(args.rewind_step, net.steps)
        listeners: list[Any] = []
        if accelerator.is_main_process:
            record.begin()
            if args.report_to == "mlflow":
                from lth_scale.tracking import Tracker  # imports mlflow, which takes its time

                listeners.append(Tracker(args, record))
        accelerator.wait_for_everyone()
        search = cls(args, record, net, ladder, int(rewind_step), listeners)
        if accelerator.is_main_process:
            listeners.append(terminal.Bars(len(search.rounds) + len(search.controlled_rounds), len(record.all_rows())))
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
    def steps(self) -> int:
        """Optimizer steps from θ₀ to the end of a round."""
        return self.net.steps

    def is_complete(self, k: int, control: str = "none") -> bool:
        """True where round k needs no more work."""
        return self.record.is_complete(k, control)

    def restart(self, k: int) -> None:
        """Put the network at the start of round k: m ⊙ θᵢ, or as --rewind says."""
        self.k, self.control = k, "none"
        keeps_weights = self.args.rewind != "weights"
        ticket, weights = first_ticket(self.args, self.net), self.net.initial
        self.net.initial = {}
        if k > 0:
            ticket = Ticket.load(self.ticket_file)
            weights = load_file(self.weights_file(k - 1) if keeps_weights else self.theta_file)
        self._start(
            weights,
            ticket,
            step=0 if k == 0 or keeps_weights else self.rewind_step,
            seed=self.args.seed + (k if keeps_weights else 0),
            consumed=k * self.steps if keeps_weights else 0,
        )

    def restart_control(self, k: int) -> None:
        """Put the network at the control of round k: θᵢ under a mask that was not found."""
        self.k, self.control = k, self.args.control
        found = Ticket.load(self.record.round(k) / "ticket.safetensors")
        masks = controls.random_mask(found.masks, found.pruned, self.args.seed)
        ticket = replace(found, masks=masks, threshold=0.0, arguments={**found.arguments, "found_by": self.control})
        self._start(load_file(self.theta_file), ticket, step=self.rewind_step, seed=self.args.seed, consumed=0)

    def _start(self, weights: training.Weights, ticket: Ticket, step: int, seed: int, consumed: int) -> None:
        self.started = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        training.restart(self.net, weights, ticket.masks, step, seed, consumed)
        if self.is_main:
            ticket.save(self.ticket_file)
        self._tell("start", self.k, ticket.sparsity, self.control, self.steps)

    def train(self, until: int) -> None:
        """Train to step `until` with the round's learning rates."""
        rate = self._rate()
        self.loss = training.train(self.net, until, rate, lambda step, loss: self._tell("step", step, loss))

    def _rate(self) -> Callable[[int], float]:
        if self.args.lr_span == "round":
            return training.learning_rates(self.args, self.steps)
        own = self.steps - self.rewind_step
        rate = training.learning_rates(self.args, self.rewind_step + own * len(self.ladder))
        return lambda step: rate(self.k * own + step)

    def keep_theta(self) -> None:
        """Write θᵢ, which every later round starts from, and its digest into the ticket."""
        weights = self.net.shards.whole_weights()
        if self.is_main:
            files.write_tensors(self.theta_file, weights)
            theta = digest({name: weights[full] for name, full in self.net.names.items()})
            replace(Ticket.load(self.ticket_file), theta_sha256=theta).save(self.ticket_file)

    def evaluate(self) -> None:
        """Score the trained network on the validation data."""
        self.scores = training.evaluate(self.net)

    def prune(self) -> None:
        """Find the next round's mask from the weights as trained, and write it."""
        net, last = self.net, self.k + 1 == len(self.ladder)
        if not last:
            weights = {name: piece.master() for name, piece in net.targets.items()}
            cut = threshold.prune(weights, net.masks, self.ladder[self.k + 1], self.args.scope, net.shards.ranks)
            masks = net.shards.gather(net.masks, net.targets)
        if not self.is_main:
            return
        found = Ticket.load(self.ticket_file)
        if not last:
            found = replace(found, masks=masks, threshold=cut)
            found.save(self.record.round(self.k + 1) / "ticket.safetensors")
        found.save(self.record.directory / "ticket.safetensors")

    def complete(self) -> None:
        """Write what the round gave, and mark it complete."""
        if self.control == "none":
            self._save_network()
        if self.is_main:
            row = self._row(Ticket.load(self.ticket_file))
            self._tell("end", row, self.control)
            self.record.complete(row, self.control)
            if self.control == "none" and self.k:
                self.record.drop_networks(self.k - 1)
        self.net.accelerator.wait_for_everyone()

    def _row(self, ticket: Ticket) -> dict[str, Any]:
        """metrics.json of this round."""
        rewound = self.rewind_step if self.k or self.control != "none" else 0
        return {
            "round": self.k,
            "sparsity": ticket.sparsity,
            "pruned": ticket.pruned,
            "prunable": ticket.prunable,
            "threshold": ticket.threshold,
            "steps": self.steps - rewound,
            "train_loss": self.loss,
            "eval": self.scores,
            "seconds": time.monotonic() - self.started,
            "peak_memory": peak_memory(),
        }

    def _save_network(self) -> None:
        """The subnetwork as trained, for `from_pretrained`; and by parameter, where the next round goes on from it."""
        shards = self.net.shards
        weights = shards.whole_weights()
        if not self.is_main:
            return
        with files.new_directory(self.record.round(self.k) / "model") as made:
            shards.skeleton.save_pretrained(made, state_dict={**shards.buffers, **weights})
            self.net.task.tokenizer.save_pretrained(made)
        if self.args.rewind != "weights":
            files.write_tensors(self.weights_file(self.k), weights)

    def finish(self) -> None:
        """Draw the pictures, close the runs, and mark the search done."""
        if self.is_main:
            last = Ticket.load(self.record.directory / "ticket.safetensors")
            pictures = figures.draw(self.record, last.layer_sparsity())
            self._tell("finish", pictures, terminal.report(self.record))
            self.record.mark_done()
        self.net.accelerator.wait_for_everyone()  # a rank that leaves early can hang the others at their exit
        self.net.accelerator.end_training()

    @property
    def is_main(self) -> bool:
        """True on the process that writes files."""
        return self.net.accelerator.is_main_process

    @property
    def ticket_file(self) -> Path:
        """Where the ticket of this round, or of the control at its sparsity, lies."""
        return self.record.round(self.k, self.control) / "ticket.safetensors"

    @property
    def theta_file(self) -> Path:
        """Where θᵢ lies."""
        return self.record.directory / "theta.safetensors"

    def weights_file(self, k: int) -> Path:
        """Where the trained weights of round k lie, under --rewind none and lr."""
        return self.record.round(k) / "weights.safetensors"

    def _tell(self, event: str, *values: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event)(*values)


def first_ticket(args: Arguments, net: Net) -> Ticket:
    """The ticket of round 0: every weight kept, or the mask of --ticket. Raises BadInput."""
    if args.ticket:
        try:
            masks = Ticket.load(args.ticket).masks_for(net.shards.skeleton)
        except BadInput as problem:
            raise BadInput(f"--ticket {args.ticket}: {problem}") from None
    else:
        masks = {name: torch.ones(piece.shape, dtype=torch.bool) for name, piece in net.targets.items()}
    return Ticket(
        masks=masks,
        base_model=args.model_name_or_path,
        base_revision=args.model_revision or net.task.revision,
        task=args.task,
        arguments={name: value for name, value in args.as_dict().items() if name not in COSMETIC},
    )


def peak_memory() -> int:
    """Bytes: the GPU's peak since the round began, or where there is none the process's peak ever."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def quiet_libraries() -> None:
    """Leave the terminal to our own bars and warnings."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed's use of it, not the user's
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

"""The steps of Algorithm 1 on a real network: what `imp.py` names, done with training, threshold and record."""

import logging
import os
import resource
import time
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
    first: Ticket  # of round 0: a mask of ones, or --ticket's
    ladder: list[float]
    rewind_step: int
    listeners: list[Any]
    ticket: Ticket = field(init=False)
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
        first = first_ticket(args, net)
        ladder = sparsities(args.schedule, args.target_sparsity, args.prune_rate, first.sparsity)
        rewind_step = parse_rewind_step(args.rewind_step, net.steps)
        listeners: list[Any] = []
        if accelerator.is_main_process:
            record.begin()
            if args.report_to == "mlflow":
                from lth_scale.tracking import Tracker  # imports mlflow, which takes its time

                listeners.append(Tracker(args, record))
        accelerator.wait_for_everyone()
        search = cls(args, record, net, first, ladder, int(rewind_step), listeners)
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
        if k == 0:
            self.ticket, weights = self.first, self.net.copy_weights()
        else:
            self.ticket = Ticket.load(self.record.round(k) / "ticket.safetensors")
            weights = load_file(self.weights_file(k - 1) if keeps_weights else self.theta_file)
        self._start(
            weights,
            step=0 if k == 0 or keeps_weights else self.rewind_step,
            seed=self.args.seed + (k if keeps_weights else 0),
            consumed=k * self.steps if keeps_weights else 0,
        )

    def restart_control(self, k: int) -> None:
        """Put the network at the control of round k: θᵢ under a mask that was not found."""
        self.k, self.control = k, self.args.control
        found = Ticket.load(self.record.round(k) / "ticket.safetensors")
        masks = controls.random_mask(found.masks, found.pruned, self.args.seed)
        self.ticket = replace(
            found, masks=masks, threshold=0.0, arguments={**found.arguments, "found_by": self.control}
        )
        self._start(load_file(self.theta_file), step=self.rewind_step, seed=self.args.seed, consumed=0)

    def _start(self, weights: training.Weights, step: int, seed: int, consumed: int) -> None:
        self.started = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        training.restart(self.net, weights, self.ticket.masks, step, seed, consumed)
        self._tell("start", self.k, self.ticket.sparsity, self.control, self.steps)

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
        self.ticket = replace(self.ticket, theta_sha256=digest(self.net.prunable))
        if self.net.accelerator.is_main_process:
            files.write_tensors(self.theta_file, self.net.copy_weights())

    def evaluate(self) -> None:
        """Score the trained network on the validation data."""
        self.scores = training.evaluate(self.net)

    def prune(self) -> None:
        """Find the next round's mask from the weights as trained, and write it."""
        following = None
        if self.k + 1 < len(self.ladder):
            masks, cut = threshold.prune(self.net.prunable, self.net.masks, self.ladder[self.k + 1], self.args.scope)
            following = replace(self.ticket, masks={name: mask.cpu() for name, mask in masks.items()}, threshold=cut)
        if not self.net.accelerator.is_main_process:
            return
        self.ticket.save(self.record.round(self.k) / "ticket.safetensors")
        if following:
            following.save(self.record.round(self.k + 1) / "ticket.safetensors")
        (following or self.ticket).save(self.record.directory / "ticket.safetensors")

    def complete(self) -> None:
        """Write what the round gave, and mark it complete."""
        if self.net.accelerator.is_main_process:
            row = self._row()
            if self.control == "none":
                self._save_network()
            else:
                self.ticket.save(self.record.round(self.k, self.control) / "ticket.safetensors")
            self._tell("end", row, self.control)
            self.record.complete(row, self.control)
            if self.control == "none" and self.k:
                self.record.drop_networks(self.k - 1)
        self.net.accelerator.wait_for_everyone()

    def _row(self) -> dict[str, Any]:
        """metrics.json of this round."""
        rewound = self.rewind_step if self.k or self.control != "none" else 0
        return {
            "round": self.k,
            "sparsity": self.ticket.sparsity,
            "pruned": self.ticket.pruned,
            "prunable": self.ticket.prunable,
            "threshold": self.ticket.threshold,
            "steps": self.steps - rewound,
            "train_loss": self.loss,
            "eval": self.scores,
            "seconds": time.monotonic() - self.started,
            "peak_memory": peak_memory(),
        }

    def _save_network(self) -> None:
        """The subnetwork as trained, for `from_pretrained`; and by parameter, where the next round goes on from it."""
        with files.new_directory(self.record.round(self.k) / "model") as made:
            self.net.task.model.save_pretrained(made)
            self.net.task.tokenizer.save_pretrained(made)
        if self.args.rewind != "weights":
            files.write_tensors(self.weights_file(self.k), self.net.copy_weights())

    def finish(self) -> None:
        """Draw the pictures, close the runs, and mark the search done."""
        if self.net.accelerator.is_main_process:
            last = Ticket.load(self.record.directory / "ticket.safetensors")
            pictures = figures.draw(self.record, last.layer_sparsity())
            self._tell("finish", pictures, terminal.report(self.record))
            self.record.mark_done()
        self.net.accelerator.wait_for_everyone()  # a rank that leaves early can hang the others at their exit
        self.net.accelerator.end_training()

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
    masks = net.masks
    if args.ticket:
        try:
            masks = Ticket.load(args.ticket).masks_for(net.task.model)
        except BadInput as problem:
            raise BadInput(f"--ticket {args.ticket}: {problem}") from None
    return Ticket(
        masks={name: mask.cpu() for name, mask in masks.items()},
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
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

"""A run: a subnetwork is started, trained, evaluated and recorded, stage by stage."""

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lth_scale.config import manifest, run_files
from lth_scale.config.arguments import Training
from lth_scale.config.errors import AGAIN, Stopped, warn
from lth_scale.distributed import usage, watchdog
from lth_scale.distributed.watchdog import STOP, SignalHandler
from lth_scale.pruning import prunable_set
from lth_scale.pruning.registries import Budget
from lth_scale.pruning.ticket import Ticket
from lth_scale.science import summary
from lth_scale.tasks.task import KnowsTrivialScores
from lth_scale.tasks.tokenizer import forget_truncation
from lth_scale.tasks.trivial import Trivial
from lth_scale.tracking import console, predictions
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import TICKET_SPARSITY, Row, Stage, describe_starved
from lth_scale.tracking.trackers import TRACKERS, Listener
from lth_scale.training import checkpoints, loop, networks, restarts
from lth_scale.training.loop import Evaluation
from lth_scale.training.networks import Network, Weights


@dataclass
class Run:
    """A prepared network, the directory of its run, and the stage in training.

    listeners: the tracker and the progress bars, on the main process only. budget: that of the
    stage. results: of the trainings that a stage with a budget has finished.
    """

    args: Training
    run_directory: RunDirectory
    net: Network
    listeners: list[Listener] = field(default_factory=list)
    stage: Stage = field(default_factory=lambda: Stage.round(0))
    start_time: float = 0.0
    evaluation: Evaluation = field(default_factory=lambda: Evaluation({}))
    budget: Budget = field(default_factory=Budget)
    results: list[Row] = field(default_factory=list)
    signals: SignalHandler = field(default_factory=SignalHandler)

    @property
    def is_main(self) -> bool:
        """True on the process that writes files."""
        return self.net.accelerator.is_main_process

    @property
    def steps(self) -> int:
        """Optimizer steps from θ₀ to the end of a training."""
        return self.net.steps

    @property
    def _earlier_steps(self) -> int:
        """Optimizer steps of the trainings that the stage has finished."""
        return len(self.results) * self.steps

    @property
    def stage_directory(self) -> Path:
        """The directory of the stage in training."""
        return self.run_directory.path(self.stage)

    @cached_property
    def trivial(self) -> Trivial:
        """The scores of trivial predictors, if the task knows any."""
        task = self.net.task
        return task.trivial() if isinstance(task, KnowsTrivialScores) else {}

    @property
    def ticket_file(self) -> Path:
        """The ticket of the stage in training."""
        return self.stage_directory / "ticket.safetensors"

    def is_complete(self, number: int, control: str = "none") -> bool:
        """Return True if a round, or the control at its sparsity, needs no more work."""
        return self.run_directory.is_complete(Stage.round(number, control))

    def track(self, args: Training, directory: Path) -> None:
        """Open the tracker of --report_to for a search, or for the next seed of a transfer."""
        create = TRACKERS[args.report_to].listener
        if create and self.is_main:
            self.listeners[:-1] = [create(args, directory, self.net.task)]

    def show_progress(self, stages: int) -> None:
        """Show progress bars for a run of this many stages, after any tracker."""
        if self.is_main:
            completed = len(self.run_directory.all_rows())
            self.listeners.append(console.ProgressBars(stages, completed))

    def start(
        self,
        stage: Stage,
        weights: Weights,
        ticket: Ticket,
        step: int,
        seed: int,
        data_offset: int = 0,
    ) -> None:
        """Start a stage at m ⊙ `weights`, step `step`, or resume it from its last checkpoint.

        Writes the ticket unless the stage is resumed.
        """
        self.stage, self.start_time = stage, time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        networks.restart(self.net, weights, ticket.masks, step, seed, data_offset)
        resumed = checkpoints.resume(self.net, self.stage_directory) if step < self.steps else None
        if resumed:
            state, seconds = resumed
            self.start_time -= seconds
            self.load_state(state)
        else:
            self.start_time -= sum(result["seconds"] for result in self.results)
            if self.is_main:
                ticket.save(self.ticket_file)
        self._warn_of_starved(ticket)
        self.prepare_listeners()
        self._start_listeners(ticket, resumed is not None)

    def _start_listeners(self, ticket: Ticket, is_resumed: bool) -> None:
        steps = self.budget.restarts * self.steps
        sparsity = ticket.arguments.get(TICKET_SPARSITY, ticket.sparsity)
        for listener in self.listeners:
            listener.start(self.stage, sparsity, steps, is_resumed or bool(self.results))
        if is_resumed and self.is_main:
            step = self._earlier_steps + self.net.step
            console.print_line(f"{self.stage.name}: goes on from step {step} of {steps}")

    def start_each(
        self,
        stage: Stage,
        weights: Callable[[int], Weights],
        ticket: Ticket,
        seed: int,
        budget: Budget,
    ) -> Iterator[None]:
        """Start the trainings of a stage with a budget one by one; the best one is its result.

        weights: seed → the weights to start from. seed: of the first training. Yields when a
        training has been started; it is to be trained and evaluated then. A training that was
        finished before is not repeated.
        """
        self.budget, self.results = budget, restarts.read(self.run_directory.path(stage))
        missing = restarts.seeds(seed, budget.restarts)[len(self.results) :]
        for training_seed in missing:
            self.net = networks.with_seed(self.net, training_seed, budget.length)
            start = weights(training_seed)
            if training_seed == missing[0]:
                self.start(stage, start, ticket, 0, training_seed)
            else:
                networks.restart(self.net, start, ticket.masks, 0, training_seed)
            yield
            self._add_result(training_seed)
            if training_seed != missing[-1] and self.is_main:
                restarts.write(self.stage_directory, self.results)
                checkpoints.remove_all(self.stage_directory)
            self.net.accelerator.wait_for_everyone()

    def _add_result(self, seed: int) -> None:
        """Add the result of a training of the stage, and keep its network if it is the best."""
        seconds = time.monotonic() - self.start_time
        seconds -= sum(result["seconds"] for result in self.results)
        result = {"seed": seed, **self._result(), "seconds": seconds}
        self.results.append(result)
        if restarts.best(self.results) is result:
            self.keep()

    def _result(self) -> Row:
        """Return the fields of metrics.json that say what the trained network scores."""
        net = self.net
        micro_steps = (net.step - net.first_step) * self.args.gradient_accumulation_steps
        loss = float(net.accelerator.reduce(net.loss_sum, reduction="mean")) / max(1, micro_steps)
        is_constant = self.evaluation.is_constant
        constant = {"constant_prediction": True} if is_constant else {}
        return {"train_loss": loss, "eval": self.evaluation.scores, **constant}

    def keep(self) -> None:
        """Save what is kept of the trained and evaluated network."""
        if self.is_main:
            predictions.write(self.stage_directory, self.evaluation.examples)

    def prepare_listeners(self) -> None:
        """Replace listeners of a single stage before one starts."""

    def _warn_of_starved(self, ticket: Ticket) -> None:
        """Warn of matrices that the mask has almost emptied, before hours of training on them."""
        if matrices := describe_starved(self._starved(ticket)):
            warn(
                "%s: %s; little or nothing passes through it: look at this score before you wait "
                "for more; a search with --scope layerwise, in another --output_dir, prunes every "
                "matrix alike",
                self.stage.name,
                matrices,
            )

    def _starved(self, ticket: Ticket) -> Row:
        starved = ticket.starved(prunable_set.transposed(self.net.engine.meta_model))
        return {"starved": starved} if starved else {}

    def state(self) -> dict[str, Tensor]:
        """Return this rank's tensors that checkpoints must hold besides the network."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""

    def train_to(self, until: int, rate: Callable[[int], float]) -> None:
        """Train to step `until` with `rate(step)`. Raises Stopped on SIGTERM."""
        with self.signals.deferred():
            loop.train(self.net, until, rate, self._after_step)

    def _after_step(self, step: int, loss: float | None) -> None:
        stage_step = self._earlier_steps + step
        for listener in self.listeners:
            listener.step(stage_step, loss)
        if loss is not None and self.is_main and self.args.report_to != "none":
            metrics = usage.system_metrics()
            for listener in self.listeners:
                listener.usage(stage_step, metrics)
        save_steps = self.args.save_steps
        self.checkpoint_if_due(bool(save_steps) and step % save_steps == 0)

    def checkpoint_if_due(self, due: bool = False) -> None:
        """Write a checkpoint if it is due or a signal asked for one. Raises Stopped on SIGTERM."""
        request = self.signals.poll(self.net.engine.ranks)
        if due or request:
            seconds, keep = time.monotonic() - self.start_time, self.args.save_total_limit
            checkpoints.save(self.net, self.stage_directory, self.state(), seconds, keep)
        if request == STOP:
            path = self.stage_directory / f"checkpoint-{self.net.step}"
            raise Stopped(f"{self.stage.name} was asked to stop: {path} is written; {AGAIN}")

    def evaluate(self) -> None:
        """Score the trained network on the validation data. Raises Stopped on SIGTERM."""
        with self.signals.deferred():
            self.evaluation = loop.evaluate(self.net, self.checkpoint_if_due)
        if self.evaluation.is_constant:
            warn(
                "%s: the network gives one prediction for all validation rows, as an untrained or "
                "dead one does; its score is that of a constant: look at it before you wait for "
                "more",
                self.stage.name,
            )

    def complete(self) -> None:
        """Write the stage's metrics, those of its best training, and mark it complete."""
        if not self.results:
            self.keep()
        results = self.results or [self._result()]
        best = restarts.best(results)
        if self.is_main:
            ticket = Ticket.load(self.ticket_file)
            found = ticket.arguments
            row = {
                self.stage.key: self.stage.number,
                "sparsity": ticket.sparsity,
                "pruned": ticket.pruned,
                "prunable": ticket.prunable,
                "threshold": ticket.threshold,
                "steps": len(results) * (self.net.step - self.net.first_step),
                "training_rows": len(self.net.task.train),
                "train_loss": best["train_loss"],
                "eval": best["eval"],
                "seconds": time.monotonic() - self.start_time,
                "peak_memory": peak_memory(),
                **self._starved(ticket),
                **({"trivial": self.trivial} if self.trivial else {}),
                **{key: best[key] for key in ("constant_prediction",) if key in best},
                **{key: found[key] for key in (TICKET_SPARSITY,) if key in found},
                **({"restarts": results} if self.budget.restarts > 1 else {}),
                **({"note": self.args.note} if self.args.note else {}),
            }
            for listener in self.listeners:
                listener.end(self.stage, row)
            self.run_directory.complete(self.stage, row)
            checkpoints.remove_all(self.stage_directory)
            restarts.remove(self.stage_directory)
        self.net.accelerator.wait_for_everyone()

    def save_network(self) -> Weights:
        """Save the trained subnetwork for `from_pretrained`; return its weights (main process)."""
        engine, tokenizer = self.net.engine, self.net.task.tokenizer
        weights = engine.full_weights()
        if self.is_main:
            with manifest.listed_directory(self.stage_directory / "model") as directory:
                engine.save_pretrained(directory, weights)
                forget_truncation(tokenizer)
                tokenizer.save_pretrained(directory)
        return weights

    def finish(self) -> None:
        """Finish the listeners and mark the run done."""
        if self.is_main:
            for directory in run_files.stage_directories(self.run_directory.directory):
                if (directory / "complete").is_file():  # a kill may have left checkpoints
                    checkpoints.remove_all(directory)
            pictures, table = self.pictures(), summary.report(self.run_directory)
            for listener in self.listeners:
                listener.finish(pictures, table)
            self.run_directory.mark_done()
        self.net.accelerator.wait_for_everyone()
        watchdog.stop()

    def pictures(self) -> dict[str, bytes]:
        """Return the run's figures as PNG by file name."""
        return {}


def peak_memory() -> int:
    """Return peak memory in bytes: of the GPU in this stage, or without one of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

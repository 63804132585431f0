"""One subnetwork in training: started, trained, evaluated, recorded. What searches and transfers share."""

import logging
import os
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
import transformers
from torch import Tensor

from lth_scale.config import listing, run_files
from lth_scale.config.arguments import Training, flags_with
from lth_scale.config.errors import AGAIN, BadInput, Stopped
from lth_scale.config.local_paths import absolute_model
from lth_scale.config.notices import warn
from lth_scale.config.redaction import redacted
from lth_scale.distributed import signals, usage, watchdog
from lth_scale.distributed.encoder import base_model
from lth_scale.pruning import prunable_set
from lth_scale.pruning.ticket import Ticket
from lth_scale.science import summary
from lth_scale.tasks import base, data, registry, tokenization
from lth_scale.tracking import console
from lth_scale.tracking.listeners import Listener
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.tracking.stages import Stage, a_round, starved_in
from lth_scale.training import checkpoints, environment, evaluation, loop, networks
from lth_scale.training.networks import Network

log = logging.getLogger("lth_scale")
Flags = TypeVar("Flags", bound=Training)


@dataclass
class Run:
    """A prepared network, where it is recorded, who is told, and the stage that is being trained."""

    args: Training
    record: RunDirectory
    net: Network
    listeners: list[Listener]
    stage: Stage = field(default_factory=lambda: a_round(0))
    started: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    requests: signals.Requests = field(default_factory=signals.Requests)

    @property
    def is_main(self) -> bool:
        """True on the process that writes files."""
        return self.net.accelerator.is_main_process

    @property
    def steps(self) -> int:
        """Optimizer steps from θ₀ to the end of a round."""
        return self.net.steps

    @property
    def ticket_file(self) -> Path:
        """Where the ticket of this stage lies."""
        return self.record.at(self.stage) / "ticket.safetensors"

    def is_complete(self, number: int, control: str = "none") -> bool:
        """True where a round, or the control at its sparsity, needs no more work."""
        return self.record.is_complete(a_round(number, control))

    def start(
        self,
        stage: Stage,
        weights: networks.Weights,
        ticket: Ticket,
        step: int,
        seed: int,
        consumed: int = 0,
    ) -> None:
        """Put the network at m ⊙ `weights`, step `step`, and write the mask down; or where a checkpoint left it."""
        self.stage, self.started = stage, time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        networks.restart(self.net, weights, ticket.masks, step, seed, consumed)
        resumed = checkpoints.resume(self.net, self.record.at(stage)) if step < self.steps else None
        if resumed:
            extras, seconds = resumed
            self.started -= seconds
            self.take(extras)
        elif self.is_main:
            ticket.save(self.ticket_file)
        if self.is_main:
            self._warn_of_starved(ticket)
        self.tell("start", stage, ticket.sparsity, self.steps, resumed is not None)
        if resumed and self.is_main:
            console.say(f"{stage.name}: goes on from step {self.net.step} of {self.steps}")

    def _warn_of_starved(self, ticket: Ticket) -> None:
        """Say that a mask has all but emptied a matrix: there may be hours of training a dead network from here on."""
        if words := starved_in(self._starved(ticket)):
            log.warning(
                "%s: %s; little or nothing passes through it: look at this score before you wait for more; a search "
                "with --scope layerwise, in another --output_dir, prunes every matrix alike",
                self.stage.name,
                words,
            )

    def _starved(self, ticket: Ticket) -> dict[str, Any]:
        """What a row says of the matrices that a ticket has all but emptied; nothing where there are none."""
        found = ticket.starved(prunable_set.transposed(self.net.engine.meta_model))
        return {"starved": found} if found else {}

    def extras(self) -> dict[str, Tensor]:
        """This rank's tensors beside the network that decide the future."""
        return {}

    def take(self, extras: dict[str, Tensor]) -> None:
        """Be as `extras` found it."""

    def train_to(self, until: int, rate: Callable[[int], float]) -> None:
        """Train to step `until` with `rate(step)`. Raises Stopped where a signal asked for it."""
        with self.requests.heeded():
            loop.train(self.net, until, rate, self._after_step)

    def _after_step(self, step: int, loss: float | None) -> None:
        self.tell("step", step, loss)
        if loss is not None and self.args.report_to == "mlflow":
            figures = usage.usage(self.net.engine.ranks)
            for listener in self.listeners:
                listener.usage(step, figures)
        self.heed(due=bool(self.args.save_steps) and step % self.args.save_steps == 0)

    def heed(self, due: bool = False) -> None:
        """Write a checkpoint where one is due or asked for, and raise Stopped where that is asked for."""
        asked = self.requests.agreed(self.net.engine.ranks)
        home = self.record.at(self.stage)
        if due or asked:
            seconds = time.monotonic() - self.started
            checkpoints.save(self.net, home, self.extras(), seconds, self.args.save_total_limit)
        if asked == signals.STOP:
            where = home / f"checkpoint-{self.net.step}"
            raise Stopped(f"{self.stage.name} was asked to stop: {where} is written; {AGAIN}")

    def evaluate(self) -> None:
        """Score the trained network on the validation data. Raises Stopped where a signal asked for it."""
        with self.requests.heeded():
            self.scores = evaluation.evaluate(self.net, self.heed)

    def complete(self) -> None:
        """Write what the stage gave, mark it complete, and drop its checkpoints."""
        loss = loop.mean_loss(self.net)
        if self.is_main:
            row = self.row(Ticket.load(self.ticket_file), loss)
            self.tell("end", self.stage, row)
            self.record.complete(self.stage, row)
            self._drop_checkpoints(self.record.at(self.stage))
        self.net.accelerator.wait_for_everyone()

    def _drop_checkpoints(self, home: Path) -> None:
        for path in checkpoints.found(home):
            checkpoints.remove(path)

    def row(self, ticket: Ticket, loss: float) -> dict[str, Any]:
        """metrics.json of this stage."""
        return {
            "seed" if self.stage.room == "seeds" else "round": self.stage.number,
            "sparsity": ticket.sparsity,
            "pruned": ticket.pruned,
            "prunable": ticket.prunable,
            "threshold": ticket.threshold,
            "steps": self.net.step - self.net.began,
            "train_loss": loss,
            "eval": self.scores,
            "seconds": time.monotonic() - self.started,
            "peak_memory": peak_memory(),
            **self._starved(ticket),
            **({"note": self.args.note} if self.args.note else {}),
        }

    def save_network(self) -> networks.Weights:
        """Write the subnetwork as trained, for `from_pretrained`; returns its weights, on the main process."""
        engine = self.net.engine
        weights = engine.full_weights()
        if self.is_main:
            with listing.listed_directory(self.record.at(self.stage) / "model") as folder:
                engine.save_pretrained(folder, weights)
                tokenization.forget_truncation(self.net.task.tokenizer)
                self.net.task.tokenizer.save_pretrained(folder)
        return weights

    def close(self, pictures: dict[str, bytes]) -> None:
        """Close the tracked runs and mark everything done."""
        if self.is_main:
            for home in run_files.stages(self.record.directory):  # a kill may have left some
                if (home / "complete").is_file():
                    self._drop_checkpoints(home)
            self.tell("finish", pictures, summary.report(self.record))
            self.record.mark_done()
        self.net.accelerator.wait_for_everyone()
        watchdog.end()

    def tell(self, event: str, *values: Any) -> None:
        """Pass an event on to the progress bars and the tracker."""
        for listener in self.listeners:
            getattr(listener, event)(*values)


def prepare(args: Training) -> Network:
    """The network of the flags, ready for its first start. Raises BadInput."""
    quiet_libraries()
    accelerator = environment.make_accelerator(args)
    watchdog.begin(accelerator, args.ddp_timeout)
    task = registry.load_task(args)
    task.prunable = matrices_begun_with(args, task) or checked_matrices(args, task)
    return networks.prepare(accelerator, task, args)


def matrices_begun_with(args: Training, task: base.Task) -> tuple[str, ...]:
    """The prunable set of the tickets in --output_dir, or else in --dense; () where there are none.

    Another version may have begun there, and have counted other matrices. Raises BadInput for those of another network.
    """
    for name in ("output_dir", "dense"):
        home = Path(getattr(args, name, None) or os.devnull)
        for file in sorted(
            [*home.glob("rounds/00/ticket.safetensors"), *home.glob("seeds/*/ticket.safetensors")]
        )[:1]:
            names = tuple(Ticket.load(file).masks)
            known = dict(base_model(task.model).named_parameters())
            if lost := [each for each in names if each not in known]:
                raise BadInput(
                    f"--{name} {home}: its tickets have {lost[0]}, which the model has not; give another"
                )
            return names
    return ()


def checked_matrices(args: Training, task: base.Task) -> tuple[str, ...]:
    """The prunable set of a new run. Raises BadInput where the network holds what is neither pruned nor passed over."""
    ignore = args.ignore or ()
    prunable_set.check(task.model, ignore, f"--model_name_or_path {args.model_name_or_path}")
    for line in filter(
        None, (prunable_set.kinds(task.model), prunable_set.passed_over(task.model, ignore))
    ):
        warn(line)
    return task.prunable


def as_begun(args: Flags, record: RunDirectory) -> Flags:
    """The flags; where a run began before there was --keep_head, so that what the checkpoint has of a head is taken."""
    before = record.begun()
    return (
        replace(args, keep_head=None)
        if before and "keep_head" not in before and not args.keep_head
        else args
    )


def begin(args: Training, record: RunDirectory, net: Network, **more: Any) -> list[Listener]:
    """Write the first file, once everything has been found usable; the tracker of --report_to, on the main process.

    more: facts that the run depends on, beside those of `depends_on`. Raises BadInput where it began with others.
    """
    facts = depends_on(args, net) | more
    record.refuse_other(facts)
    listeners: list[Listener] = []
    if net.accelerator.is_main_process:
        for line in filter(None, [*record.remarks(facts), net.task.remark]):
            console.say(line)
        record.begin(facts)
        if args.report_to == "mlflow":
            from lth_scale.tracking.mlflow.tracker import (
                MlflowTracker,  # imports mlflow, which takes its time
            )

            listeners.append(MlflowTracker(args, record, task=net.task))
    net.accelerator.wait_for_everyone()
    return listeners


def depends_on(args: Training, net: Network) -> dict[str, Any]:
    """The facts of `provenance` that are known once everything is loaded: what is in force, and the Hub's commits."""
    revisions = {
        "model": net.task.revision,
        "data": "" if args.dataset_path else data.hub_revision(net.task.train),
    }
    return {
        **environment.in_force(net.accelerator),
        "base_sha256": net.task.base_sha256,
        "revisions": {name: sha for name, sha in revisions.items() if sha},
    }


def bars(trial: Run, stages: int) -> None:
    """Show progress, on the main process."""
    if trial.is_main:
        trial.listeners.append(console.ProgressBars(stages, len(trial.record.all_rows())))


def first_ticket(args: Training, net: Network) -> Ticket:
    """The ticket to start from: every weight kept, or the mask of --ticket. Raises BadInput."""
    masks = {name: torch.ones(piece.shape, dtype=torch.bool) for name, piece in net.targets.items()}
    threshold, how = 0.0, {"pattern": "unstructured", "scope": "global"}
    if args.ticket:
        try:
            found = Ticket.load(args.ticket)
            masks, threshold = masks | own_masks(found, net), found.threshold
            how = {name: found.arguments.get(name) or usual for name, usual in how.items()}
        except BadInput as problem:
            raise BadInput(f"--ticket {args.ticket}: {problem}") from problem
    given = redacted(
        {
            name: value
            for name, value in args.as_saved().items()
            if name not in flags_with("cosmetic")
        }
    )
    if args.max_steps == 0:
        given |= {
            "bf16": False,
            "fp16": False,
        }  # nothing is trained: a ticket of θ₀ is the same in every precision
    return Ticket(
        masks=masks,
        **of_base(args, net),
        base_revision=args.model_revision or net.task.revision,
        task=args.task,
        threshold=threshold,
        arguments={
            **given,
            **{name: found for name, found in how.items() if given.get(name) is None},
        },
    )


def of_base(args: Training, net: Network) -> dict[str, str]:
    """The base model, as tickets and files of θᵢ name it."""
    return {
        "base_model": redacted(absolute_model(args.model_name_or_path)),
        "base_sha256": net.task.base_sha256,
    }


def check_base(args: Training, net: Network) -> None:
    """Refuse a --ticket that was found in other weights than the base model's. Raises BadInput."""
    if args.ticket:
        found = Ticket.load(args.ticket)
        refuse_other_weights(
            f"--ticket {args.ticket}", found.base_sha256, found.base_model, args, net
        )


def refuse_other_weights(
    name: str, base_sha256: str, base: str, args: Training, net: Network
) -> None:
    """Refuse what belongs to other weights than the base model's: those of `base`, of this digest ('': not known).

    name: what it is, as in `--ticket FILE`. Raises BadInput. Where --allow_other_weights permits it, and where it is
    not known, a line says so.
    """
    ours, model = net.task.base_sha256, args.model_name_or_path
    if base_sha256 == ours:
        return
    said = f"comes from other weights, base_sha256 {base_sha256[:12]}… of {base!r}, and {model!r} has {ours[:12]}…"
    if not base_sha256:
        said = (
            f"has no base_sha256, so it is not checked that it comes from the weights of {model!r}"
        )
    elif not args.allow_other_weights:
        raise BadInput(
            f"{name}: {said}; give that model as --model_name_or_path, or --allow_other_weights"
        )
    if net.accelerator.is_main_process:
        log.warning("%s: %s", name, said)


def own_masks(found: Ticket, net: Network) -> dict[str, Tensor]:
    """The masks of a ticket for the matrices that this run prunes. Raises BadInput where it prunes others too."""
    masks = found.masks_for(net.engine.meta_model)
    for name in masks.keys() - net.targets.keys():
        if not (name.startswith(prunable_set.POOLER) or masks[name].all()):
            raise BadInput(
                f"prunes {name}, which --ignore {' '.join(net.args.ignore or ())} leaves dense; leave it out"
            )
    return {name: mask for name, mask in masks.items() if name in net.targets}


def peak_memory() -> int:
    """Bytes: the GPU's peak since the stage began, or where there is none the process's peak ever."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def quiet_libraries() -> None:
    """Leave the terminal to our own bars and warnings."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", "`torch.distributed", FutureWarning
    )  # DeepSpeed's use of it, not the user's

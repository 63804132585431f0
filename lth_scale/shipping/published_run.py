"""The run that a push publishes."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lth_scale.config import files
from lth_scale.config.arguments import Arguments, Training, Transfer, flags_with
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.resolution import resolve
from lth_scale.config.texts import as_words
from lth_scale.pruning.registries import CONTROLS
from lth_scale.pruning.ticket import Ticket
from lth_scale.shipping.publication import Publication
from lth_scale.tasks.registry import TASKS, TaskKind
from lth_scale.tracking.run_directory import RunDirectory


@dataclass(frozen=True)
class PublishedRun:
    """A search or transfer, and the stage whose network is uploaded.

    saved: arguments.json; metrics: metrics.json of the stage; publication: what may be published.
    """

    run_directory: RunDirectory
    stage: Path
    ticket: Ticket
    saved: dict[str, Any]
    metrics: dict[str, Any]
    publication: Publication

    @classmethod
    def of_stage(cls, stage: Path) -> "PublishedRun":
        """Return the run of a stage (rounds/KK or seeds/SS), as its arguments.json says."""
        root = stage.absolute().parent.parent
        saved = files.read_json(root / "arguments.json")
        return cls(
            RunDirectory(root, arguments_of(saved)),
            stage,
            Ticket.load(stage / "ticket.safetensors"),
            saved,
            files.read_json(stage / "metrics.json"),
            Publication(saved, root, stage),
        )

    @property
    def args(self) -> Training:
        """The flags of the run."""
        return self.run_directory.arguments

    @property
    def task(self) -> TaskKind:
        """The task of the run."""
        return TASKS[self.args.task]

    @property
    def control(self) -> str:
        """The control of a transfer, or `none`."""
        return self.args.control if isinstance(self.args, Transfer) else "none"

    @property
    def seed(self) -> int:
        """The seed of the network that is uploaded."""
        return self.metrics.get("seed", self.args.seed)

    @property
    def base_model(self) -> str:
        """The base model's name on the Hub, or the last name of its directory."""
        name = self.args.model_name_or_path
        return "lth_scale-embedded-bert" if name == EMBEDDED else self.publication.model(name)

    @property
    def has_hub_base(self) -> bool:
        """True if the base model is on the Hub."""
        name = self.args.model_name_or_path
        return name != EMBEDDED and not self.publication.is_local(name)

    @property
    def applies_to_base(self) -> bool:
        """True if the run trained m ⊙ θ₀, with θ₀ the weights of the base model."""
        args = self.args
        if isinstance(args, Transfer):
            return not args.theta and CONTROLS[args.control].base_weights
        assert isinstance(args, Arguments)
        return args.rewind == "weights" and args.rewind_step in ("0", "0.0")

    @property
    def evaluated_on(self) -> str:
        """The data of the scores: the Hub's dataset or local files, and how much of it."""
        args, (dataset, config) = self.args, self.task.dataset
        data = f"the validation split of `{dataset}`, `{config}`"
        if args.task == "mlm":
            data = f"text held out of `{dataset}`, `{config}`"
        if args.dataset_path == EMBEDDED:
            data = "the small data that lth_scale brings for its demo"
        elif args.dataset_path:
            data = (
                f"local files in the columns of `{dataset}`, `{config}`: "
                "its score only if these are its files"
            )
        if args.max_eval_samples:
            data += f"; only the first {args.max_eval_samples:,} examples"
        return data

    @property
    def command(self) -> str:
        """The command line of the run: flags that differ from the defaults, paths by last name."""
        args = self.args
        short = {"task": args.task, **({"preset": args.preset} if args.preset else {})}
        defaults, values = resolve(short, type(args)).as_dict(), args.as_dict()
        omitted = {*flags_with("cosmetic"), *short} - {"seeds"}
        changed = {
            name: value
            for name, value in values.items()
            if name not in omitted and value != defaults[name]
        }
        if "max_steps" in changed and args.max_steps == -1:
            del changed["max_steps"]  # --num_train_epochs replaces it
            changed["num_train_epochs"] = args.num_train_epochs
        command = "transfer" if isinstance(args, Transfer) else "imp"
        words = ["accelerate", "launch", "-m", f"lth_scale.{command}"]
        for name, value in self.publication.value(short | changed).items():
            words += as_words(name, value) if value is not None else []
        return shlex.join(words)


def arguments_of(saved: Mapping[str, Any]) -> Training:
    """Return arguments.json as flags; those that an older version lacked have defaults."""
    cls = Transfer if "seeds" in saved else Arguments
    names = {field.name for field in fields(cls)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in saved.items()
        if name in names
    }
    return cls(**values)

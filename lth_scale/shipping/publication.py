"""What a push publishes of a run: its facts, without local paths and secrets."""

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lth_scale.config import files
from lth_scale.config.arguments import Arguments, Transfer, flags_with, with_current_names
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.redaction import without_secrets
from lth_scale.config.resolution import HUB_NAME, with_defaults
from lth_scale.config.texts import as_words
from lth_scale.pruning.registries import CONTROLS
from lth_scale.pruning.ticket import Ticket
from lth_scale.tasks.registry import TASKS, adopt_metric
from lth_scale.tracking.run_directory import RunDirectory

PATH_KEY = re.compile(r".*(name_or_path|_path|_file|_dir)")  # in files that transformers writes
ABSOLUTE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|\.\.?[/\\]|file:", re.I)


def bare(path: str) -> str:
    """Return the last name of a local path of any system; `embedded` and '' are kept."""
    text = unquote(urlsplit(path).path) if path.startswith("file:") else path
    last = re.split(r"[/\\]+", text.rstrip("/\\") or text)[-1]
    if last in ("", ".", "..") and path:
        last = Path(text).resolve().name
    return "local" if last.startswith("~") or (path and not last) else last


class Publication:
    """Flags and texts of a run as they may be published.

    flags: arguments.json. directories: those of the run. `names` maps each local path that a text
    may contain to what is published instead.
    """

    def __init__(self, flags: Mapping[str, Any], *directories: Path):
        self.flags, self.parents = flags, [Path()]
        directories = tuple(map(Path.absolute, directories))
        for directory in directories:
            self.parents += [directory, *directory.parents]
        paths = {value for name, value in flags.items() if name in flags_with("path") and value}
        paths |= {self.base_model} if self.is_local(self.base_model) else set()
        published: list[tuple[str | Path, str]]
        published = [(path, bare(path)) for path in paths if isinstance(path, str)]
        published += [(directory, directory.name) for directory in directories]
        names = {
            str(form): name
            for path, name in published
            for form in (path, Path(path).absolute(), Path(path).resolve())
        }
        names |= {str(path): "local" for path in (Path.cwd(), Path.home()) if len(path.parts) > 1}
        self.names = {path: name for path, name in names.items() if re.search(r"[/\\]", path)}

    @property
    def base_model(self) -> str:
        """The run's --model_name_or_path."""
        return str(self.flags.get("model_name_or_path") or "")

    def is_local(self, model: str) -> bool:
        """Return whether a model's name is a directory, as the run recorded it or by its form."""
        if model in ("", EMBEDDED):
            return False
        digests = self.flags.get("digests")  # version 0.1.0 recorded none
        if model == self.base_model and isinstance(digests, dict):
            return "model" in digests
        return not re.fullmatch(HUB_NAME, model, re.ASCII) or self.directory(model) is not None

    def directory(self, model: str) -> Path | None:
        """Return the directory of this name below the current one, the run or its parents."""
        paths = (parent / model for parent in self.parents)
        return next((path for path in paths if os.path.isdir(path)), None)

    def model(self, name: str) -> str:
        """Return a model's name on the Hub, or the last name of a local directory."""
        return bare(name) if self.is_local(name) else name

    def text(self, text: str) -> str:
        """Return a text without secrets, with last names in place of the run's paths."""
        for path in sorted(self.names, key=len, reverse=True):
            name = self.names[path].replace("\\", r"\\")
            text = re.sub(rf"(?<![\w.~-]){re.escape(path)}(?![\w-])", name, text)
        return without_secrets(text)

    def value(self, value: Any, key: str = "") -> Any:
        """Return a JSON value of `key` with its strings as they may be published."""
        if isinstance(value, dict):
            return {name: self.value(item, name) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.value(item, key) for item in value)
        if not isinstance(value, str):
            return value
        if key == "model_name_or_path":
            return self.text(self.model(value))
        if key == "dataset_name":
            return self.text(value if re.fullmatch(HUB_NAME, value, re.ASCII) else bare(value))
        local = key in flags_with("path") or (
            PATH_KEY.fullmatch(key) and (ABSOLUTE.match(value) or value in self.names)
        )
        return self.text(bare(value) if local else value)

    def ticket(self, ticket: Ticket) -> Ticket:
        """Return a ticket with metadata as it may be published."""
        return replace(
            ticket,
            base_model=self.value(ticket.base_model, "model_name_or_path"),
            base_revision="" if self.is_local(ticket.base_model) else ticket.base_revision,
            arguments=self.value(ticket.arguments),
        )

    def rewrite(self, directory: Path) -> None:
        """Rewrite the JSON files of a directory as they may be published."""
        for path in directory.glob("*.json"):
            if path.name not in ("tokenizer.json", "vocab.json"):  # tokens are no settings
                content = json.loads(path.read_bytes())
                if (published := self.value(content)) != content:
                    files.write_json(path, published)


class PublishedRun:
    """A search or transfer, and the stage whose network is uploaded.

    stage: rounds/KK or seeds/SS; metrics: its metrics.json. publication: what may be published.
    control: that of a transfer, or `none`. seed: that of the network. base_model: its name on the
    Hub (has_hub_base), or the last name of its directory.
    """

    def __init__(self, stage: Path):
        root = stage.absolute().parent.parent
        saved = with_current_names(files.read_json(root / "arguments.json"))
        kind = Transfer if "seeds" in saved else Arguments
        known = saved.keys() & {spec.name for spec in fields(kind)}  # not all in older versions
        values: dict[str, Any] = {
            name: tuple(saved[name]) if isinstance(saved[name], list) else saved[name]
            for name in known
        }
        self.stage = stage
        self.args = kind(**values)
        self.run_directory = RunDirectory(root, self.args)
        self.ticket = Ticket.load(stage / "ticket.safetensors")
        self.metrics = files.read_json(stage / "metrics.json")
        self.publication = Publication(saved, root, stage)
        self.task = TASKS[self.args.task]
        adopt_metric(saved)
        self.control = self.args.control if isinstance(self.args, Transfer) else "none"
        self.seed = self.metrics.get("seed", self.args.seed)
        base = self.args.model_name_or_path
        self.has_hub_base = base != EMBEDDED and not self.publication.is_local(base)
        public = self.publication.model(base)
        self.base_model = "lth_scale-embedded-bert" if base == EMBEDDED else public

    @property
    def kind(self) -> str:
        """What the network is: a ticket, a control, a reference of equal budget, or dense."""
        if self.control == "none":
            return "A lottery ticket" if self.ticket.pruned else "The full network"
        control = CONTROLS[self.control]
        kind = "reference" if control.budget else "control"
        return f"A {kind} of a lottery ticket (`{self.control}`: {control.label})"

    @property
    def applies_to_base(self) -> bool:
        """True if the run trained m ⊙ θ₀, with θ₀ the weights of the base model."""
        args = self.args
        if isinstance(args, Transfer):
            return not args.theta and CONTROLS[args.control].base_weights
        return args.rewind == "weights" and args.rewind_step in ("0", "0.0")

    @property
    def is_of_own_data(self) -> bool:
        """True if the flags, and not the task, say where the data is."""
        return self.task.is_of_own_data

    @property
    def hub_dataset(self) -> tuple[str, str] | None:
        """Name and configuration of the Hub's dataset, or None if the data is local."""
        args = self.args
        if args.dataset_path or args.train_file:
            return None
        if not args.dataset_name:
            return self.task.dataset if self.task.dataset[0] else None
        if "dataset_name" in self.publication.flags.get("digests", {}):
            return None  # a directory
        return args.dataset_name, args.dataset_config_name or "default"

    @property
    def evaluated_on(self) -> str:
        """The data of the scores: the Hub's dataset or local files, and how much of it."""
        args, dataset = self.args, "`{}`, `{}`".format(*(self.hub_dataset or self.task.dataset))
        if args.dataset_path == EMBEDDED:
            data = "the small data that lth_scale brings for its demo"
        elif self.is_of_own_data and not self.hub_dataset:
            share = args.validation_split_percentage
            part = f"{share} % of local files, not trained on" if share else "local files"
            data = f"{part}, for which nobody else's scores are known"
        elif args.dataset_path:
            columns = f"local files in the columns of {dataset}"
            data = f"{columns}: its score only if these are its files"
        elif args.validation_split_percentage:
            data = f"{args.validation_split_percentage} % of the training split of {dataset}"
        else:
            part = "text held out of" if args.task == "mlm" else "the validation split of"
            data = f"{part} {dataset}"
        if args.max_eval_samples:
            data += f"; only the first {args.max_eval_samples:,} examples"
        return data

    @property
    def command(self) -> str:
        """The command line of the run: flags that differ from the defaults, paths by last name."""
        args = self.args
        given: dict[str, Any] = {"task": args.task}
        given |= {"preset": args.preset} if args.preset else {}
        defaults = with_defaults(given, type(args)).as_dict()
        omitted = {*flags_with("cosmetic"), *given} - {"seeds"}
        for name, value in args.as_dict().items():
            if name not in omitted and value != defaults[name]:
                given[name] = value
        if "max_steps" in given and args.max_steps == -1:
            del given["max_steps"]  # --num_train_epochs replaces it
            given["num_train_epochs"] = args.num_train_epochs
        door = "transfer" if isinstance(args, Transfer) else "imp"
        words = ["accelerate", "launch", "-m", f"lth_scale.{door}"]
        for name, value in self.publication.value(given).items():
            words += as_words(name, value) if value is not None else []
        return shlex.join(words)

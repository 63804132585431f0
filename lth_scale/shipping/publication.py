"""What a push publishes of local paths: their last names, and not where they lie."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from lth_scale.config import files
from lth_scale.config.arguments import flags_with
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.redaction import without_secrets
from lth_scale.config.resolution import HUB_NAME

if TYPE_CHECKING:
    from lth_scale.pruning.ticket import Ticket


PATH_KEY = re.compile(
    r".*(name_or_path|_path|_file|_dir)"
)  # the same, in the files that transformers writes
ABSOLUTE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|\.\.?[/\\]|file:", re.I)
VOCABULARIES = ("tokenizer.json", "vocab.json")


def bare(path: str) -> str:
    """The last name of a local path, of this system or another; `embedded` and '' stay."""
    text = unquote(urlsplit(path).path) if path.startswith("file:") else path
    last = re.split(r"[/\\]+", text.rstrip("/\\") or text)[-1]
    if last in ("", ".", "..") and path:
        last = Path(text).resolve().name
    return "local" if last.startswith("~") or (path and not last) else last


class Publication:
    """Flags and texts of a run as they may be published. `paths`: what to call each local path that they may hold.

    flags: what arguments.json holds. places: the directories of the run.
    """

    def __init__(self, flags: Mapping[str, Any], *places: Path):
        self.flags, self.homes = flags, [Path()]
        for place in map(Path.absolute, places):
            self.homes += [place, *place.parents]
        held = {
            value
            for name, value in flags.items()
            if isinstance(value, str) and value and name in flags_with("path")
        }
        held |= {self.base_model} if self.is_local(self.base_model) else set()
        known = {
            str(form): bare(path)
            for path in held
            for form in (path, Path(path).absolute(), Path(path).resolve())
        }
        known |= {
            str(form): place.absolute().name
            for place in places
            for form in (place.absolute(), place.resolve())
        }
        known |= {str(form): "local" for form in (Path.cwd(), Path.home()) if len(form.parts) > 1}
        self.paths = {path: name for path, name in known.items() if re.search(r"[/\\]", path)}

    @property
    def base_model(self) -> str:
        """The run's --model_name_or_path, as it was given."""
        return str(self.flags.get("model_name_or_path") or "")

    def is_local(self, model: str) -> bool:
        """True where a model's name means a directory: as the run recorded it, or else as the name looks."""
        if model in ("", EMBEDDED):
            return False
        digests = self.flags.get("digests")  # version 0.1.0 recorded none
        if model == self.base_model and isinstance(digests, dict):
            return "model" in digests
        return not re.fullmatch(HUB_NAME, model, re.ASCII) or self.directory(model) is not None

    def directory(self, model: str) -> Path | None:
        """The directory of this name below the current one, or else below the run or one that it lies in."""
        return next((home / model for home in self.homes if os.path.isdir(home / model)), None)

    def model(self, name: str) -> str:
        """A model's name on the Hub as it is; of a local directory, the last name."""
        return bare(name) if self.is_local(name) else name

    def text(self, text: str) -> str:
        """A text without secrets, and with last names for the paths of the run."""
        for path in sorted(self.paths, key=len, reverse=True):
            name = self.paths[path].replace("\\", r"\\")
            text = re.sub(rf"(?<![\w.~-]){re.escape(path)}(?![\w-])", name, text)
        return without_secrets(text)

    def value(self, value: Any, key: str = "") -> Any:
        """A JSON value, with the texts in it; `key` is the name that it stands under."""
        if isinstance(value, dict):
            return {name: self.value(each, name) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.value(each, key) for each in value)
        if not isinstance(value, str):
            return value
        if key == "model_name_or_path":
            return self.text(self.model(value))
        local = key in flags_with("path") or (
            PATH_KEY.fullmatch(key) and (ABSOLUTE.match(value) or value in self.paths)
        )
        return self.text(bare(value) if local else value)

    def ticket(self, ticket: "Ticket") -> "Ticket":
        """A ticket with the same masks, whose base model and arguments may be published."""
        base = self.value(ticket.base_model, "model_name_or_path")
        revision = "" if self.is_local(ticket.base_model) else ticket.base_revision
        return replace(
            ticket, base_model=base, base_revision=revision, arguments=self.value(ticket.arguments)
        )

    def rewrite(self, directory: Path) -> None:
        """Let no JSON file of settings in a directory hold more than may be published."""
        for path in directory.glob("*.json"):
            held = json.loads(path.read_bytes())
            shown = held if path.name in VOCABULARIES else self.value(held)
            if shown != held:
                files.write_json(path, shown)

"""What a push publishes: which files, and of local paths only the last names."""

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


# The files that a push uploads and a pull keeps: weights, settings, what tokenizers of transformers
# save, card, evaluation results and figures. No code, no pickle, no link.
PUSHED = (
    r"(compact/)?\w[\w.-]*\.(safetensors|json|jinja|txt|model|codes|bpe|spm|tiktoken|tokenizer)"
    r"|(compact/)?additional_chat_templates/\w[\w.-]*\.jinja"
    r"|README\.md|\.eval_results/\w[\w.-]*\.yaml|figures/\w[\w.-]*\.png"
)
PATH_KEY = re.compile(r".*(name_or_path|_path|_file|_dir)")  # in files that transformers writes
ABSOLUTE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|\.\.?[/\\]|file:", re.I)
VOCABULARIES = ("tokenizer.json", "vocab.json")


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
        names = {
            str(form): bare(path)
            for path in paths
            if isinstance(path, str)
            for form in (path, Path(path).absolute(), Path(path).resolve())
        }
        names |= {
            str(form): directory.name
            for directory in directories
            for form in (directory, directory.resolve())
        }
        names |= {str(form): "local" for form in (Path.cwd(), Path.home()) if len(form.parts) > 1}
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
        """Return a JSON value with its strings as they may be published; `key` is its own key."""
        if isinstance(value, dict):
            return {name: self.value(item, name) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.value(item, key) for item in value)
        if not isinstance(value, str):
            return value
        if key == "model_name_or_path":
            return self.text(self.model(value))
        local = key in flags_with("path") or (
            PATH_KEY.fullmatch(key) and (ABSOLUTE.match(value) or value in self.names)
        )
        return self.text(bare(value) if local else value)

    def ticket(self, ticket: "Ticket") -> "Ticket":
        """Return a ticket with the same masks, whose metadata may be published."""
        base = self.value(ticket.base_model, "model_name_or_path")
        revision = "" if self.is_local(ticket.base_model) else ticket.base_revision
        return replace(
            ticket, base_model=base, base_revision=revision, arguments=self.value(ticket.arguments)
        )

    def rewrite(self, directory: Path) -> None:
        """Rewrite the JSON files of settings in a directory as they may be published."""
        for path in directory.glob("*.json"):
            if path.name in VOCABULARIES:
                continue
            content = json.loads(path.read_bytes())
            published = self.value(content)
            if published != content:
                files.write_json(path, published)

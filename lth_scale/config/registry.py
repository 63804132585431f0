"""Registries: what a flag may name. One line an entry, open to third parties."""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from lth_scale.config.errors import BadInput

Entry = TypeVar("Entry")


class Renamed(NamedTuple):
    """The name that an entry has now, and why it has another one."""

    name: str
    why: str


class Registry(Mapping[str, Entry]):
    """Entries by name, in the order of registration.

    kind: what messages call an entry, and the key of the registry in `REGISTRIES`. find: the entry
    of a name that is not registered, or None. renamed: earlier names, which new commands may not
    use and which saved flags may have. aliases: further names of entries in this process.
    """

    def __init__(self, kind: str, find: Callable[[str], Entry | None] = lambda name: None):
        self.kind, self.find = kind, find
        self.renamed: dict[str, Renamed] = {}
        self.aliases: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        REGISTRIES[kind] = self

    def register(self, name: str, entry: Entry) -> Entry:
        """Add an entry and return it. Raises ValueError if the name is taken."""
        if name in self._entries or name in self.renamed:
            raise ValueError(f"the {self.kind} {name!r} is registered already")
        self._entries[name] = entry
        return entry

    def alias(self, name: str, entry: str) -> None:
        """Know the entry under a further name, in this process. Raises ValueError if it is taken.

        Another alias is replaced.
        """
        if name in self._entries and name not in self.aliases:
            raise ValueError(f"the {self.kind} {name!r} is registered already")
        self._entries[name] = self[entry]
        self.aliases[name] = entry

    def rename(self, old: str, name: str, why: str) -> None:
        """Refuse the name `old` of the entry `name` from now on; saved flags may still have it."""
        self.renamed[old] = Renamed(name, why)

    def refusal(self, name: str) -> str:
        """Why an earlier name is refused, and the current one; empty for every other name."""
        if name not in self.renamed:
            return ""
        current, why = self.renamed[name]
        return f"is called {current} now, because {why}; use {current}"

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries and (entry := self.find(name)) is not None:
            return entry
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


REGISTRIES: dict[str, Registry[Any]] = {}


def parse_with(parsers: Registry[Callable[[str], Entry | None]], text: str) -> Entry:
    """What the first registered parser that accepts `text` returns; the others return None.

    The names in the registry are the syntaxes that the flag of its kind takes. Raises BadInput.
    """
    for parse in parsers.values():
        if (entry := parse(text)) is not None:
            return entry
    syntaxes = ", ".join(parsers)
    raise BadInput(f"--{parsers.kind} {text}: unknown {parsers.kind}; use one of {syntaxes}")


def lazy(reference: str) -> Callable[..., Any]:
    """A function of another module, imported at its first call.

    reference: `module:name`. Registries name functions that need torch in this way, so that
    `--help` and bad input do not wait for it.
    """

    def call(*args: Any, **options: Any) -> Any:
        module, _, name = reference.partition(":")
        return getattr(import_module(module), name)(*args, **options)

    return call

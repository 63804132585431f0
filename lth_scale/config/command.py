"""A command: its flags and what it does with them."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lth_scale.config.flags import check_ranges
from lth_scale.config.parsers import VERBOSE, OneLineParser, add_flags, is_verbose
from lth_scale.config.texts import as_words

Args = TypeVar("Args")


def construct(values: dict[str, Any], flags: type[Args]) -> Args:
    """Build a dataclass of flags from their values, duplicates removed. Raises BadInput."""
    args = flags(
        **{
            name: tuple(dict.fromkeys(value)) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )
    check_ranges(args)
    return args


@dataclass(frozen=True)
class NoFlags:
    """The flags of a command that only has subcommands."""


@dataclass(frozen=True, kw_only=True)
class Command(Generic[Args]):
    """A command of the package: `python -m lth_scale.NAME`, or `lth NAME`.

    summary: one line for `lth --help`. flags: a dataclass of flags. run: what the command does;
    None if it requires a subcommand. resolve: (values, flags) → an instance of `flags`, with
    defaults filled in and checked. extra: turns words that are no flags into further values.
    one_process: under a launcher, run in the first process only.
    """

    name: str
    summary: str
    flags: type[Args]
    run: Callable[[Args], None] | None = None
    resolve: Callable[[dict[str, Any], type[Args]], Args] = construct
    extra: Callable[[list[str]], dict[str, Any]] | None = None
    description: str = ""
    epilog: Callable[[], str] | None = None
    one_process: bool = False
    subcommands: tuple["Command[Any]", ...] = ()

    def parser(self) -> OneLineParser:
        """Return the command's parser; does not import torch."""
        is_lth = not self.name or Path(sys.argv[0]).name == "lth"
        prog = f"lth {self.name}".strip() if is_lth else f"python -m {self.module}"
        epilog = self.epilog and self.epilog()
        return self._fill(OneLineParser(prog=prog, description=self._about, epilog=epilog))

    @property
    def module(self) -> str:
        """The module that runs the command."""
        return f"lth_scale.{self.name}"

    @property
    def _about(self) -> str:
        return self.description or f"{self.summary[:1].upper()}{self.summary[1:]}."

    def _fill(self, parser: OneLineParser) -> OneLineParser:
        add_flags(parser, self.flags).set_defaults(command=self)
        if self.subcommands:
            parser.usage = "%(prog)s COMMAND [flags]"
            commands = parser.add_subparsers(
                title="commands", metavar="COMMAND", prog=parser.prog, required=self.run is None
            )
            for command in self.subcommands:
                about = command._about
                command._fill(
                    commands.add_parser(command.name, help=command.summary, description=about)
                )
        return parser

    def parse(self, argv: Sequence[str] | None = None) -> Args:
        """Return the resolved flags of a command line (default: this process's).

        Raises BadInput, which names the flag, its value and the remedy.
        """
        return self._parse(argv)[1]

    def _parse(self, argv: Sequence[str] | None = None) -> tuple["Command[Any]", Any]:
        parser = self.parser()
        namespace, rest = parser.parse_known_args(argv)
        values = vars(namespace)
        command: Command[Any] = values.pop("command")
        if rest and not command.extra:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        values |= command.extra(rest) if command.extra else {}
        return command, command.resolve(values, command.flags)

    def main(self) -> None:
        """Run this process's command line. Raises BadInput."""
        if self.one_process and os.environ.get("RANK", "0") != "0":
            return
        command, args = self._parse()
        if command.run:
            command.run(args)

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Return the words after `python -m` that run this command with these flags."""
        return [self.module, *as_argv(values), *([VERBOSE] if is_verbose() else [])]


def as_argv(values: Mapping[str, Any]) -> list[str]:
    """Return flags as a command line; True is a flag without a value, False is omitted."""
    return [
        word
        for name, value in values.items()
        if value is not False
        for word in as_words(name, value)
    ]

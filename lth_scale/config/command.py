"""A command: its flags, their parser and what it does with them."""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from lth_scale.config.errors import BadInput, is_main_process
from lth_scale.config.flags import Flag, Group, check_ranges, default_text, flags_of, value_type
from lth_scale.config.registry import REGISTRIES
from lth_scale.config.startup import COMPILERS, DATA
from lth_scale.config.texts import as_words

# Environment variables that name directories to which something is written
_DIRECTORIES = (
    *("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "MPLCONFIGDIR"),
    *("TORCH_EXTENSIONS_DIR", *DATA, *COMPILERS),
)
_METAVARS = {"int": "N", "float": "X", "str": "TEXT"}
_LONGEST_CHOICES = 24  # characters of choices that stand for the value in --help
VERBOSE = "--verbose"

Args = TypeVar("Args")
Parser = TypeVar("Parser", bound=argparse.ArgumentParser)


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
    defaults filled in and checked. extra: turns words that are not flags into further values.
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

    def parser(self) -> "OneLineParser":
        """Return the command's parser; does not import torch."""
        is_lth = not self.name or Path(sys.argv[0]).name == "lth"
        prog = f"lth {self.name}".strip() if is_lth else f"python -m lth_scale.{self.name}"
        epilog = self.epilog and self.epilog()
        return self._fill(OneLineParser(prog=prog, description=self._about, epilog=epilog))

    @property
    def _about(self) -> str:
        return self.description or f"{self.summary[:1].upper()}{self.summary[1:]}."

    def _fill(self, parser: "OneLineParser") -> "OneLineParser":
        add_flags(parser, self.flags).set_defaults(command=self)
        if self.subcommands:
            parser.usage = "%(prog)s COMMAND [flags]"
            commands = parser.add_subparsers(
                title="commands", metavar="COMMAND", prog=parser.prog, required=self.run is None
            )
            for sub in self.subcommands:
                sub._fill(commands.add_parser(sub.name, help=sub.summary, description=sub._about))
        return parser

    def parse(self, argv: Sequence[str] | None = None) -> tuple["Command[Any]", Any]:
        """Return the (sub)command of a command line (default: this process's) and its flags.

        Raises BadInput, which names the flag, its value and the remedy.
        """
        parser = self.parser()
        namespace, rest = parser.parse_known_args(argv)
        values = vars(namespace)
        command: Command[Any] = values.pop("command")
        if command.extra:
            values |= command.extra(rest)
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return command, command.resolve(values, command.flags)

    def main(self) -> None:
        """Run this process's command line. Raises BadInput."""
        if self.one_process and not is_main_process():
            return
        command, args = self.parse()
        if command.run:
            command.run(args)

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Return the words after `python -m` that run this command with these flags."""
        return [f"lth_scale.{self.name}", *as_argv(values), *([VERBOSE] if is_verbose() else [])]


def as_argv(values: Mapping[str, Any]) -> list[str]:
    """Return flags as a command line; True is a flag without a value, False is omitted."""
    given = {name: value for name, value in values.items() if value is not False}
    return [word for name, value in given.items() for word in as_words(name, value)]


def is_verbose() -> bool:
    """True if the command line contains --verbose."""
    return VERBOSE in sys.argv[1:]


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are BadInput of one line."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=_WideFormatter, **options)
        self.add_argument(
            VERBOSE,
            action="store_true",
            default=argparse.SUPPRESS,
            help="print the full error of a library above its one-line summary",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like ArgumentParser. Raises BadInput for an empty value or a non-UTF-8 path."""
        words = [*(sys.argv[1:] if args is None else args)]
        given = []
        for before, word in zip(["", *words], words, strict=False):
            name, equals, value = word.partition("=")
            is_pair = equals and name.startswith("--")
            flag = before if before.startswith("--") else ""
            given.append((name, value) if is_pair else (flag, word))
        _check_utf8(given)
        for name, value in given:
            if not value:  # an empty path would stand for the current directory
                raise BadInput(
                    f"{name or 'argument'} '': empty value; specify one or omit the flag"
                )
        namespace, rest = super().parse_known_args(args, namespace)
        vars(namespace).pop("verbose", None)  # see `is_verbose`
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raise BadInput, which becomes exit code 2."""
        raise BadInput(f"{message.removeprefix('argument ')} (see --help)")


class _WideFormatter(argparse.HelpFormatter):
    """A HelpFormatter with room for long flags, unbroken names and preformatted tables."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, max_help_position=32, **options)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _check_utf8(given: Sequence[tuple[str, str]]) -> None:
    """Raise BadInput for a path, link target or current directory that is not UTF-8.

    MLflow, the data cache and safetensors accept only text. given: flags and values.
    """
    try:
        paths = [("the current directory", os.getcwd())]
    except FileNotFoundError:
        raise BadInput("the current directory: no longer exists; change to another") from None
    paths += [(name, os.environ[name]) for name in _DIRECTORIES if name in os.environ]
    for name, value in (*paths, *given):
        for path in (value, os.path.realpath(value)):
            shown = path.encode(errors="backslashreplace").decode()
            if shown != path:
                shown = shown.replace("\\udc", "\\x")
                raise BadInput(f"{name} {shown}: path is not UTF-8; rename it or use another")


def add_flags(parser: Parser, kind: type) -> Parser:
    """Add a flag for each field of a dataclass; a flag that is not given stays unset."""
    sections = {group: parser.add_argument_group(group) for group in Group}
    positional, required = [], []
    for spec, flag in flags_of(kind):
        _add_flag(sections[flag.group] if flag.group else parser, spec, flag)
        if flag.positional:
            positional.append(_value_name(spec, flag) + ("…" if value_type(spec)[1] else ""))
        elif spec.default is MISSING:
            required.append(f"--{spec.name} {_value_name(spec, flag)}")
    parser.usage = " ".join(["%(prog)s", *positional, *required, "[flags]"])
    return parser


def _add_flag(to: argparse._ActionsContainer, spec: Field[Any], flag: Flag) -> None:
    kind, several = value_type(spec)
    choices = flag.names
    is_long = len(",".join(choices)) > _LONGEST_CHOICES
    others = ", ".join(choice for choice in choices if choice != spec.default)
    text = flag.help + (f": {others}" if is_long else "") + default_text(spec)
    options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
    if kind is bool:
        options["action"] = "store_true"
    else:
        parse = partial(_current_name, flag.registry) if flag.registry else kind
        accepted = REGISTRIES[flag.registry] if flag.registry else choices
        options |= {"type": parse, "choices": accepted or None, "nargs": "+" if several else None}
        options |= {"metavar": _value_name(spec, flag)} if is_long or not choices else {}
    if flag.positional:
        to.add_argument(spec.name, **options)
    else:
        to.add_argument(f"--{spec.name}", required=spec.default is MISSING, **options)


def _current_name(registry: str, name: str) -> str:
    """The name itself. Raises ArgumentTypeError if it is an earlier name of an entry."""
    if refusal := REGISTRIES[registry].refusal(name):
        raise argparse.ArgumentTypeError(f"{name} {refusal}")
    return name


def _value_name(spec: Field[Any], flag: Flag) -> str:
    """What stands for the value of a flag in `--help`."""
    if flag.names:
        return spec.name.split("_")[-1].upper()
    return flag.metavar or _METAVARS[value_type(spec)[0].__name__]

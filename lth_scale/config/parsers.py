"""The parser of a dataclass of flags: grouped `--help`, errors of one line."""

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field
from typing import Any, NoReturn, TypeVar

from lth_scale.config.errors import BadInput
from lth_scale.config.flags import Flag, Group, default_text, flags_of, value_type
from lth_scale.config.texts import is_text

# Environment variables that name directories to which something is written.
DIRECTORIES = (
    "HOME",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_MODULES_CACHE",
    "MPLCONFIGDIR",
    "TORCH_EXTENSIONS_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
)
METAVARS = {"int": "N", "float": "X", "str": "TEXT"}
LONGEST_CHOICES = 24  # characters of choices that stand for the value in --help
VERBOSE = "--verbose"


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are BadInput of one line."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=WideFormatter, **options)
        self.add_argument(
            VERBOSE,
            action="store_true",
            default=argparse.SUPPRESS,
            help="print the full error of a library above its one-line summary",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like ArgumentParser. Raises BadInput for an empty value or a non-UTF-8 path."""
        words = [*(sys.argv[1:] if args is None else args)]
        check_utf8(words)
        for before, word in zip(["", *words], words, strict=False):
            # An empty path would stand for the current directory.
            if not word or (word.startswith("--") and word.endswith("=")):
                name = word.rstrip("=") or (before if before.startswith("--") else "argument")
                raise BadInput(f"{name} '': empty value; specify one or omit the flag")
        namespace, rest = super().parse_known_args(args, namespace)
        vars(namespace).pop("verbose", None)  # see `is_verbose`
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raise BadInput, which becomes exit code 2."""
        raise BadInput(f"{message.removeprefix('argument ')} (see --help)")


class WideFormatter(argparse.HelpFormatter):
    """A HelpFormatter with room for long flags, unbroken names and preformatted tables."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, max_help_position=32, **options)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


Parser = TypeVar("Parser", bound=argparse.ArgumentParser)


def is_verbose() -> bool:
    """Return True if the command line contains --verbose."""
    return VERBOSE in sys.argv[1:]


def check_utf8(words: Sequence[str]) -> None:
    """Raise BadInput for a path, link target or current directory that is not UTF-8.

    MLflow, the data cache and safetensors accept only text.
    """
    try:
        paths = [("the current directory", os.getcwd())]
    except FileNotFoundError:
        raise BadInput("the current directory: no longer exists; change to another") from None
    paths += [(name, os.environ[name]) for name in DIRECTORIES if name in os.environ]
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        is_pair = equals and name.startswith("--")
        flag = before if before.startswith("--") else ""
        paths.append((name, value) if is_pair else (flag, word))
    for name, value in paths:
        if not is_text(value) or not is_text(os.path.realpath(value)):
            raw = os.path.realpath(value) if is_text(value) else value
            shown = raw.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")
            raise BadInput(f"{name} {shown}: path is not UTF-8; rename it or specify another")


def add_flags(parser: Parser, kind: type) -> Parser:
    """Add a flag for each field of a dataclass; a flag that is not given stays unset."""
    declared = [*flags_of(kind)]
    positional = [
        name_of(spec, flag) + ("…" if value_type(spec)[1] else "")
        for spec, flag in declared
        if flag.positional
    ]
    required = [
        f"--{spec.name} {name_of(spec, flag)}"
        for spec, flag in declared
        if spec.default is MISSING and not flag.positional
    ]
    parser.usage = " ".join(["%(prog)s", *positional, *required, "[flags]"])
    sections = {group: parser.add_argument_group(group) for group in Group}
    for spec, flag in declared:
        add_flag(sections[flag.group] if flag.group else parser, spec, flag)
    return parser


def add_flag(to: argparse._ActionsContainer, spec: Field[Any], flag: Flag) -> None:
    """Add the flag of a dataclass field."""
    kind, several = value_type(spec)
    choices = flag.names
    listed = is_long(choices)
    others = [choice for choice in choices if choice != spec.default]
    text = flag.help + (f": {', '.join(others)}" if listed else "") + default_text(spec)
    options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
    if kind is bool:
        options["action"] = "store_true"
    else:
        options |= {"type": kind, "choices": choices or None, "nargs": "+" if several else None}
        options |= {"metavar": name_of(spec, flag)} if listed or not choices else {}
    if flag.positional:
        to.add_argument(spec.name, **options)
    else:
        to.add_argument(f"--{spec.name}", required=spec.default is MISSING, **options)


def is_long(choices: Sequence[str]) -> bool:
    """Return True if choices are too long to stand for the value of a flag."""
    return len(",".join(choices)) > LONGEST_CHOICES


def name_of(spec: Field[Any], flag: Flag) -> str:
    """Return what stands for the value of a flag in `--help`."""
    if flag.names:
        return spec.name.split("_")[-1].upper()
    return flag.metavar or METAVARS[value_type(spec)[0].__name__]

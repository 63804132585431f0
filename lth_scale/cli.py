"""`lth VERB …`: every command of the package under one name, and what shells complete it with."""

import importlib
import sys
from argparse import ArgumentParser
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from lth_scale.config import parsers
from lth_scale.config.arguments import Arguments, Transfer
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.parsers import OneLineParser
from lth_scale.config.version import __version__
from lth_scale.distributed import compat

# The modules whose `main` is a verb, and what --help says of each.
VERBS = {
    "imp": "find a lottery ticket by iterative magnitude pruning",
    "transfer": "train a ticket, or a control of it, on a task",
    "study": "run a grid of searches and transfers, each once",
    "report": "write the report of a study",
    "export": "write a ticket's network in a format that others load",
    "speed": "time networks in every engine on this machine",
    "hub": "push a run to the Hugging Face Hub, or pull one",
    "ticket": "print a ticket, or combine two",
}
KINDS = {"imp": Arguments, "transfer": Transfer}
SHELLS = ("bash", "zsh", "tcsh")


def build_parser(whole: bool = False) -> OneLineParser:
    """`lth` and its verbs by name alone, or with all their flags."""
    parser = OneLineParser(
        "lth", description="Lottery tickets in pre-trained encoders.", allow_abbrev=False
    )
    parser.usage = "lth VERB [flags]   (lth VERB --help lists them)"
    parser.add_argument("--version", action="version", version=f"lth_scale {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        help="print the script that completes lth in this shell",
    )
    verbs = parser.add_subparsers(
        title="verbs", metavar="VERB", dest="verb", parser_class=ArgumentParser
    )
    for verb, about in VERBS.items():
        verbs.add_parser(
            verb, help=about, add_help=False, parents=[parser_of(verb)] if whole else []
        )
    return parser


def parser_of(verb: str) -> ArgumentParser:
    """A verb's own parser, made without torch."""
    if verb in KINDS:
        return parsers.build_parser(
            f"lth_scale.{verb}", f"{VERBS[verb].capitalize()}.", KINDS[verb]
        )
    return module_of(verb).build_parser()


def module_of(verb: str) -> ModuleType:
    """The module whose `main` a verb is."""
    return importlib.import_module(f"lth_scale.{verb}")


def completion(shell: str) -> str:
    """The script that completes verbs, flags, their choices and names of files."""
    import shtab

    parser = build_parser(whole=True)
    for action in compat.parser_actions(parser):
        if action.nargs != 0 and not action.choices and action.type in (None, str, Path):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def run() -> None:
    """Do what the command line says. Raises BadInput."""
    if sys.argv[1:2] == [parsers.VERBOSE]:
        sys.argv.append(sys.argv.pop(1))  # a flag of the verb's
    named = [each for each in sys.argv[1:2] if not each.startswith("-")]
    parser = build_parser()
    given = parser.parse_args(named or sys.argv[1:])
    if given.print_completion:
        print(completion(given.print_completion))
    elif given.verb:
        del sys.argv[1]
        parser_of(
            given.verb
        ).parse_known_args()  # --help and wrong values do not wait for what the verb imports
        module_of(given.verb).main()
    else:
        parser.print_help()


def main() -> NoReturn:
    """The console script."""
    exit_on_bad_input(run)


if __name__ == "__main__":
    main()

"""`lth COMMAND …`: all commands of the package under one name, and their shell completion."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from lth_scale.config.command import VERBOSE, Command, NoFlags, OneLineParser
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.config.version import __version__
from lth_scale.distributed import compat

COMMANDS = ("imp", "transfer", "study", "report", "export", "speed", "hub", "ticket")
SHELLS = ("bash", "zsh", "tcsh")


def command(name: str) -> Command[Any]:
    """Import the module of a command and return it."""
    return import_module(f"lth_scale.{name}").COMMAND


def lth() -> OneLineParser:
    """Return the parser of `lth` with all commands and their flags; does not import torch."""
    parser = Command(
        name="",
        summary="lottery tickets in pre-trained encoders",
        flags=NoFlags,
        run=lambda args: None,
        subcommands=(*map(command, COMMANDS),),
    ).parser()
    parser.usage = "lth COMMAND [flags]   (lth COMMAND --help lists them)"
    parser.add_argument("--version", action="version", version=f"lth_scale {__version__}")
    parser.add_argument(
        "--print-completion", choices=SHELLS, help="print the completion script for this shell"
    )
    return parser


def completion(shell: str) -> str:
    """Return the script that completes commands, flags, choices and files."""
    import shtab

    parser = lth()
    for action in compat.parser_actions(parser):
        if action.nargs != 0 and not action.choices and action.type in (None, str, Path):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def run() -> None:
    """Run this process's command line. Raises BadInput."""
    if sys.argv[1:2] == [VERBOSE]:
        sys.argv.append(sys.argv.pop(1))  # a flag of the command
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        command(sys.argv.pop(1)).main()
        return
    parser = lth()
    shell = parser.parse_args().print_completion
    print(completion(shell)) if shell else parser.print_help()


def main() -> NoReturn:
    """Run `lth`, the console script."""
    exit_on_bad_input(run)


if __name__ == "__main__":
    main()

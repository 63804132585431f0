"""A command: from a dataclass of flags to its parser, its resolved flags and its run."""

from dataclasses import MISSING, dataclass

import pytest

from lth_scale.config.command import Command, NoFlags, as_argv
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import Range, flag


@dataclass(frozen=True, kw_only=True)
class Example:
    sources: tuple[str, ...] = flag("what to read", MISSING, positional=True, metavar="SOURCE")
    format: str = flag("how to write it", MISSING, choices=("text", "binary"))
    sizes: tuple[int, ...] = flag("sizes", (1, 2), range=Range(1, 9, "1 to 9"))
    dry_run: bool = flag("write nothing", False)


@pytest.fixture
def ran():
    return []


@pytest.fixture
def command(ran):
    return Command(name="example", summary="an example", flags=Example, run=ran.append)


def test_a_command_line_becomes_the_dataclass_without_duplicates(command):
    _, args = command.parse(["a", "b", "a", "--format", "text", "--sizes", "3", "3", "4"])
    assert args == Example(sources=("a", "b"), format="text", sizes=(3, 4))


def test_help_has_positionals_required_flags_choices_and_defaults(command):
    text = command.parser().format_help()
    assert text.startswith("usage: python -m lth_scale.example SOURCE… --format FORMAT [flags]\n")
    assert "An example." in text and "{text,binary}" in text and "(default: 1 2)" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("a --format csv", "--format: invalid choice: 'csv'"),
        ("a --format text --size 3", "unrecognized arguments: --size 3"),
        ("a --format text --sizes 3 10", "--sizes 10: out of range; use 1 to 9"),
        ("--format text", "SOURCE"),
        ("a", "--format"),
    ],
)
def test_bad_input_names_flag_and_value(argv, message, command):
    with pytest.raises(BadInput, match=message):
        command.parse(argv.split())


def test_main_runs_the_subcommand_in_the_first_process_only(command, ran, monkeypatch):
    group = Command(
        name="group", summary="a group", flags=NoFlags, subcommands=(command,), one_process=True
    )
    monkeypatch.setattr("sys.argv", ["group", "example", "a", "--format", "text"])
    monkeypatch.setenv("RANK", "1")
    group.main()
    assert not ran
    monkeypatch.setenv("RANK", "0")
    group.main()
    assert ran == [Example(sources=("a",), format="text")]
    with pytest.raises(BadInput, match="required: COMMAND"):
        group.parse([])


def test_words_of_a_command_are_parsed_to_the_same_flags(command):
    values = {"format": "text", "sizes": [3, 4], "dry_run": True}
    module, *words = command.words(values)
    assert module == "lth_scale.example" and words == as_argv(values)
    _, args = command.parse(["a", *words])
    assert args == Example(sources=("a",), format="text", sizes=(3, 4), dry_run=True)
    assert as_argv({"dry_run": False}) == []

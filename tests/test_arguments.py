"""`--help`: grouped, short, complete, with defaults, and without torch."""

import gc
import re
import sys
from dataclasses import MISSING, fields

import pytest

from lth_scale import arguments
from lth_scale.arguments import DEFAULTS, GROUPS, Arguments, Transfer, build_parser

KINDS = {"imp": Arguments, "transfer": Transfer}


@pytest.fixture(params=KINDS)
def helped(request, monkeypatch) -> tuple[type, str]:
    """A kind, and its --help at 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    kind = KINDS[request.param]
    return kind, build_parser(f"lth_scale.{request.param}", "About.", kind).format_help()


def entries(text: str) -> dict[str, list[str]]:
    """The lines of each flag, by its name."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if name := re.match(r"  --(\w+)", line):
            found[name[1]] = []
        if found and (name or line.startswith(" " * 6)):
            found[list(found)[-1]].append(line)
    return found


def test_each_flag_stands_once_and_in_one_group(helped):
    kind, text = helped
    known = {spec.name for spec in fields(kind)}
    grouped = [name for names in GROUPS.values() for name in names.split()]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {spec.name for each in KINDS.values() for spec in fields(each)}
    parts = dict(re.findall(r"^([\w ]+):\n((?:  .*\n)+)", text, re.MULTILINE))
    assert [*parts] == ["options", *GROUPS]
    for title, names in GROUPS.items():
        assert [*entries(parts[title])] == [name for name in names.split() if name in known]


def test_a_flag_takes_two_lines_at_most_and_none_is_wider_than_the_terminal(helped):
    kind, text = helped
    found = entries(text)
    assert {*found} == {"verbose", *(spec.name for spec in fields(kind))}
    assert [name for name, lines in found.items() if len(lines) > 2] == []
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("usage: python -m lth_scale.") and text.splitlines()[0].endswith(" --task TASK [flags]")


def test_defaults_and_choices_are_said(helped):
    kind, text = helped
    said = {name: " ".join(" ".join(lines).split()) for name, lines in entries(text).items()}
    for spec in fields(kind):
        if spec.default not in (None, MISSING) and spec.default is not False:
            assert f"(default: {spec.default})" in said[spec.name]
        assert all(choice in said[spec.name] for choice in spec.metadata.get("choices") or ())
    for name in DEFAULTS["mlm"]:
        usual, *others = re.search(r"\(default: (.*)\)", said[name])[1].split(", ")
        by_task = dict(other.split() for other in others)
        assert all(by_task.get(task, usual) == str(values[name]) for task, values in DEFAULTS.items())


def test_names_are_not_broken_at_their_hyphens(helped):
    assert "google-bert/bert-base-uncased" in helped[1]


def test_the_usage_says_how_the_command_was_called(monkeypatch):
    monkeypatch.setattr(arguments.sys, "argv", ["/usr/bin/lth", "imp"])
    assert build_parser("lth_scale.imp", "", Arguments).prog == "lth imp"


def test_what_is_imported_first_is_never_searched_for_garbage_and_what_comes_later_is(monkeypatch):
    kept = gc.get_freeze_count()
    monkeypatch.setitem(sys.modules, "torch", sys)  # here already: nothing of a caller's is touched
    with arguments.first_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == kept
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ImportError), arguments.first_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() and gc.get_freeze_count() > kept
    gc.unfreeze()

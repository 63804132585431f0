"""`--help`: grouped, short, complete, with defaults, and without torch."""

import gc
import os
import re
import shlex
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest

from lth_scale import cli
from lth_scale.config import exit_codes, resolution, startup, texts
from lth_scale.config.arguments import Arguments, Transfer, flags_with
from lth_scale.config.command import OneLineParser
from lth_scale.config.defaults import DEFAULTS
from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.flags import Group, flags_of, value_type
from lth_scale.config.registry import REGISTRIES

KINDS = {"imp": Arguments, "transfer": Transfer}


@pytest.fixture(params=KINDS)
def helped(request, monkeypatch) -> tuple[type, str]:
    """A kind, and its --help at 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    kind = KINDS[request.param]
    return kind, cli.command(request.param).parser().format_help()


def entries(text: str) -> dict[str, list[str]]:
    """The lines of each flag, by its name."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if name := re.match(r"  --(\w+)", line):
            found[name[1]] = []
        if found and (name or line.startswith(" " * 6)):
            found[list(found)[-1]].append(line)
    return found


def test_help_lists_each_flag_once_in_its_group(helped):
    kind, text = helped
    sections = dict(re.findall(r"^([\w ]+):\n((?:  .*\n)+)", text, re.MULTILINE))
    assert [*sections] == ["options", *Group]
    for group in Group:
        names = [spec.name for spec, flag in flags_of(kind) if flag.group is group]
        assert [*entries(sections[group])] == names


def test_every_field_is_a_flag_in_a_group_and_numbers_have_a_range(helped):
    kind, _ = helped
    declared = dict(flags_of(kind))
    assert [*declared] == [*fields(kind)]
    assert all(flag.group for flag in declared.values())
    for spec, flag in declared.items():
        assert (flag.range is not None) == (value_type(spec)[0] in (int, float))


def test_the_facts_of_flags_are_those_of_earlier_versions():
    """Runs of earlier versions are compared, resumed and published by these names."""
    cosmetic = """output_dir logging_steps report_to run_name dataloader_num_workers seeds
        compare_with delta save_steps save_total_limit ddp_timeout push_to_hub hub_model_id
        hub_private_repo keep_network"""
    grid = """task seed seeds output_dir target_sparsity ticket theta dense keep_theta rewind
        rewind_step control"""
    assert flags_with("cosmetic") == {*cosmetic.split()}
    assert flags_with("grid") == {*grid.split()}
    method = "scope pattern score rewind rewind_step distill early_bird"
    assert flags_with("method") == {*method.split()}
    paths = """dataset_path output_dir dense compare_with ticket theta train_file validation_file
        test_file"""
    assert flags_with("path") == {*paths.split()}
    assert flags_with("several") == {"ignore", "seeds"}


def test_a_registered_name_becomes_a_choice(monkeypatch):
    registry = REGISTRIES["schedule"]
    before = dict(registry)
    monkeypatch.setattr(registry, "_entries", {**before, "ours": before["linear"]})
    assert "ours" in cli.command("imp").parser().format_help()
    args = resolution.parse(["--task", "sst2", "--preset", "demo", "--schedule", "ours"])
    assert args.schedule == "ours"
    monkeypatch.setattr(registry, "_entries", before)
    with pytest.raises(BadInput, match="--schedule: invalid choice: 'ours'"):
        resolution.parse(["--task", "sst2", "--preset", "demo", "--schedule", "ours"])


def test_help_of_a_flag_is_short_and_fits_the_terminal(helped):
    kind, text = helped
    found = entries(text)
    assert {*found} == {"verbose", *(spec.name for spec in fields(kind))}
    lists = {spec.name for spec, declared in flags_of(kind) if declared.registry}
    long_name = {"per_device_train_batch_size": 3}  # takes a line of its own
    most = dict.fromkeys(found, 2) | dict.fromkeys(lists, 4) | long_name
    assert [name for name, lines in found.items() if len(lines) > most[name]] == []
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith("usage: python -m lth_scale.") and text.splitlines()[0].endswith(
        " --task TASK [flags]"
    )


def test_help_names_defaults_and_choices(helped):
    kind, text = helped
    said = {name: " ".join(" ".join(lines).split()) for name, lines in entries(text).items()}
    for spec in fields(kind):
        if spec.default not in (None, MISSING) and spec.default is not False:
            assert f"(default: {spec.default})" in said[spec.name]
        assert all(choice in said[spec.name] for choice in spec.metadata["flag"].names)
    for name in DEFAULTS["mlm"]:
        usual, *others = re.search(r"\(default: (.*)\)", said[name])[1].split(", ")
        groups = [other.split() for other in others]  # tasks, and the default that they share
        by_task = {task: value for *tasks, value in groups for task in tasks}
        assert all(
            by_task.get(task, usual) == str(values[name]) for task, values in DEFAULTS.items()
        )


def test_names_are_not_broken_at_their_hyphens(helped):
    assert "google-bert/bert-base-uncased" in helped[1]


def test_usage_names_the_command_as_it_was_called(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lth", "imp"])
    assert cli.command("imp").parser().prog == "lth imp"
    push = cli.command("hub").parser().parse_args(["push", "x", "--private"])
    assert push.run == "x" and push.private


def test_garbage_collection_skips_the_first_imports_and_resumes_afterwards(monkeypatch):
    kept = gc.get_freeze_count()
    monkeypatch.setitem(sys.modules, "torch", sys)  # imported already: a caller's settings are kept
    with startup.first_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == kept
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ImportError), startup.first_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() and gc.get_freeze_count() > kept
    gc.unfreeze()


OUTCOMES = [  # the error, its cause, the exit code, whether a library says more
    (BadInput("--task x: unknown"), None, 2, False),
    (BadInput("--task x: unknown"), ValueError("pl4nted says why"), 2, True),
    (Stopped("the Hub failed"), OSError("pl4nted says why"), 1, True),
    (BadInput("outer"), BadInput("inner"), 2, False),
]


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize(("problem", "cause", "code", "more"), OUTCOMES)
def test_verbose_prints_the_error_of_a_library_and_otherwise_the_line_names_the_flag(
    problem, cause, code, more, verbose, monkeypatch, capsys
):
    def command():
        raise problem from cause

    monkeypatch.setenv("HF_TOKEN", "pl4nted")  # must not be printed
    monkeypatch.setattr(sys, "argv", ["imp", *(["--verbose"] if verbose else [])])
    with pytest.raises(SystemExit) as stop:
        exit_codes.exit_on_bad_input(command)
    *before, last = capsys.readouterr().err.splitlines()
    hint = "; add --verbose for the whole error" if more and not verbose else ""
    assert stop.value.code == code and last == f"error: {problem}{hint}"
    said = "\n".join(before)
    assert ("*** says why" in said and "Traceback" in said) if more and verbose else said == ""


def test_an_error_that_began_in_this_package_has_no_further_details():
    with pytest.raises(BadInput) as problem:
        resolution.parse(["--task", "sst2", "--preset", "demo", "--optim_args", "eps"])
    assert not exit_codes.summarises(problem.value)
    own = BadInput("outer")
    with pytest.raises(ValueError, match="registered already") as cause:
        REGISTRIES["schedule"].register("linear", None)
    own.__cause__ = cause.value
    assert not exit_codes.summarises(own)


@pytest.mark.parametrize(
    "command", ["imp", "transfer", "study", "report", "export", "speed", "ticket", "hub"]
)
def test_every_command_accepts_verbose_and_does_not_pass_it_on(command):
    parser = cli.command(command).parser()
    assert "--verbose" in parser.format_help()
    words = {
        "imp": ["--task", "sst2"],
        "transfer": ["--task", "sst2"],
        "hub": ["pull", "a/b"],
        "export": [".", "--format", "csr", "--output_dir", "x"],
    }.get(command, ["x"])
    assert not hasattr(parser.parse_args(["--verbose", *words]), "verbose")
    assert not hasattr(parser.parse_args([*words, "--verbose"]), "verbose")


SENTENCE = "The repository contains code which must be run. You can read it at a place. "


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("", ""),
        ("one\n two\t three ", "one two three"),
        (SENTENCE * 2, (SENTENCE * 2).strip()),
        (SENTENCE * 9, (SENTENCE * 3).strip()),
        ("a-long word " * 30, "a-long word " * 19 + "a-long …"),
        ("x" * 999, "x" * 120 + "… (999 characters)"),
    ],
)
def test_text_is_cut_between_sentences_or_words_and_a_long_word_shows_its_length(text, short):
    assert texts.brief(text) == short and len(short) <= texts.LONGEST


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Sizes differ. For details look at the above report!", "Sizes differ"),
        ("See the error above. It lacks a weight", "It lacks a weight"),
        ("look at the report above", "ValueError"),
        ("Give a number above 0.", "Give a number above 0"),
        ("\nError:\n  no such file\nmore", "Error: no such file"),
    ],
)
def test_references_to_the_log_of_a_library_are_removed(text, line):
    assert texts.first_line(ValueError(text)) == line


@pytest.mark.parametrize("value", ["a b", "-x", "it's", "$HOME", "`x`", '"q"', "ü&;|", "-1"])
def test_printed_flags_and_paths_can_be_pasted_into_a_shell(value):
    shell = (
        f"printf '%s\\0' {shlex.join(texts.as_words('output_dir', value))} {texts.quoted(value)}"
    )
    done = (
        subprocess.run(["bash", "-c", shell], capture_output=True, check=True)
        .stdout.decode()
        .split("\0")[:-1]
    )
    *flag, path = done
    assert (
        argparse_value(flag) == value
        and os.path.normpath(path) == value
        and not path.startswith("-")
    )


def argparse_value(words):
    parser = OneLineParser(prog="test")
    parser.add_argument("--output_dir")
    return parser.parse_args(words).output_dir

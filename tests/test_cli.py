"""`lth`: the commands of the modules, their errors and exit codes, and shell completion."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lth_scale
from lth_scale import cli
from lth_scale.config.arguments import Arguments, Transfer

LTH = Path(sys.executable).with_name("lth")


def lth(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [LTH, *argv],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "100"},
    )


def test_every_module_with_a_main_is_a_command():
    package = Path(lth_scale.__file__).parent
    modules = {
        path.stem
        for path in package.rglob("*.py")
        if "\n    exit_on_bad_input(main)" in path.read_text()
    }
    assert modules == {*cli.COMMANDS}
    for name in cli.COMMANDS:
        assert cli.command(name).name == name


def test_lth_lists_its_commands_and_prints_its_version():
    alone, helped = lth(), lth("--help")
    assert alone.returncode == helped.returncode == 0 and alone.stdout == helped.stdout
    for name in cli.COMMANDS:
        summary = re.escape(cli.command(name).summary)
        assert re.search(rf"^ +{name} +{summary}$", alone.stdout, re.MULTILINE)
    assert lth("--version").stdout == f"lth_scale {lth_scale.__version__}\n"


@pytest.mark.parametrize(
    "argv", [["impp"], ["--versio"], ["--print-completion", "ksh"]], ids=" ".join
)
def test_an_unknown_command_is_refused_in_one_line(argv):
    done = lth(*argv)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr) and argv[-1] in done.stderr


def test_a_closed_stdout_prints_no_error():
    argv = [LTH, "study", "studies/demo.yaml", "--dry_run"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 128 + signal.SIGPIPE)


@pytest.mark.parametrize(
    "argv",
    [
        ["imp", "--task", "sst3"],
        ["imp", "--task", "sst2", "--prune_rate", "7"],
        ["study", "nothing.yaml"],
        ["report", "nothing"],
        ["hub", "push", "nothing"],
    ],
    ids=lambda argv: " ".join(argv[:3]),
)
def test_lth_reports_bad_input_as_the_module_does(argv, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done, module = lth(*argv), command(f"lth_scale.{argv[0]}", *argv[1:])
    assert done.returncode == module.returncode == 2
    assert done.stderr == module.stderr and done.stderr.startswith("error: ") and done.stdout == ""
    assert not any(tmp_path.iterdir())


def test_lth_prints_a_ticket_as_the_module_does(command, tmp_path):
    import torch

    from lth_scale import Ticket

    Ticket({"encoder.layer.0": torch.eye(4).bool()}, task="sst2").save(
        tmp_path / "ticket.safetensors"
    )
    done, module = lth("ticket", str(tmp_path)), command("lth_scale.ticket", str(tmp_path))
    assert (
        done.returncode == 0
        and "75.0000% (12 of 16" in done.stdout
        and done.stdout == module.stdout
    )


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_does_not_import_torch(name):
    code = f"""import sys; sys.argv = ["lth", "{name}", "--help"]
from lth_scale import cli
try: cli.run()
except SystemExit: sys.exit("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: lth {name}")


COMPLETED = {
    "lth im": "imp",
    "lth t": "transfer ticket",
    "lth imp --ta": "--task --target_sparsity",
    "lth imp --task ss": "sst2",
    "lth transfer --task sst2 --con": "--control --connectivity",
    "lth imp --control random_": "random_mask random_layerwise",
    "lth imp --bf16 --opt": "--optim --optim_args",
    "lth export --format c": "compact csr",
    "lth hub pu": "push pull",
    "lth ticket ru": "runs",
    "lth imp --output_dir runs/f": "runs/first",
    "lth --print-completion z": "zsh",
}


def test_bash_completes_commands_flags_choices_and_files(tmp_path):
    (tmp_path / "runs/first").mkdir(parents=True)
    tab = (
        'COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); $function; echo "${COMPREPLY[*]}"'
    )
    script = [
        'eval "$(lth --print-completion bash)"',
        'function=$(complete -p lth | sed "s/.*-F \\([^ ]*\\) lth/\\1/")',
        f"tab() {{ {tab}; }}",
        *(f'tab "{words}"' for words in COMPLETED),
    ]
    path = f"{LTH.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
    )
    assert dict(zip(COMPLETED, done.stdout.splitlines(), strict=True)) == COMPLETED, done.stderr


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_scripts_have_every_flag_and_do_not_import_torch(shell):
    code = f"""import sys; sys.argv = ["lth", "--print-completion", "{shell}"]
from lth_scale import cli
cli.run(); sys.exit("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for kind in (Arguments, Transfer):
        assert all(name in done.stdout for name in kind.__dataclass_fields__)

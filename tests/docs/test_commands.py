"""Every command of the documentation runs, or the page says why a test cannot run it."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKS = (
    "accelerate_configs",
    "constraints.txt",
    "docker",
    "examples",
    "launchers",
    "pyproject.toml",
    "run",
    "studies",
)
EXECUTED, SHOWN = (
    ("sh", "bash", "python"),
    ("", "text", "yaml", "toml", "json", "ini", "dockerfile"),
)
MARKER = re.compile(r"<!-- (?:run|run with: (?P<flags>\S.*?)|not run: (?P<reason>\S.*?)) -->")
COMMAND = re.compile(r"-m lth_scale\.\w+|(^|\s)lth \w+|\./run demo|launchers/\w+\.sh")
PLAIN = re.compile(r"python -m (lth_scale\.\w+)((?: +[\w./-]+)*) *(?:#.*)?")
TAIL = re.compile(
    r"^(.*?)(\s+(?:#|\||>|2>|&).*)?$"
)  # a command, and what a shell does not hand to it


@dataclass(frozen=True)
class Block:
    """A fence of a page. flags: what `run with:` appends; reason: why it is not run, or None."""

    line: int
    language: str
    code: str
    flags: str
    reason: str | None

    @property
    def shell(self) -> str:
        """The code on logical lines, each lth_scale command with the flags."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return "\n".join(
            TAIL.sub(rf"\1 {self.flags}\2", line) if COMMAND.search(line) else line
            for line in lines
        )

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Module and flags of each line, if every line is only a command of this package."""
        found = [PLAIN.fullmatch(line) for line in self.shell.splitlines() if line]
        return [(each[1], each[2]) for each in found if each] if all(found) else []


def blocks(text: str) -> list[Block]:
    """The executed fences of a page. AssertionError names the line of one that has no marker."""
    found, lines, number = [], text.splitlines(), 0
    while number < len(lines):
        number += 1
        fence = re.fullmatch(r"( *)```(\S*).*", lines[number - 1])
        if not fence:
            command = re.match(
                r"(?: {4,}|\t)(python|accelerate|torchrun|pip|\./run|lth) ", lines[number - 1]
            )
            assert not command, f"line {number}: a command outside of a fence"
            continue
        start, language = number, fence[2]
        while lines[number].strip() != "```":
            number += 1
        code = "\n".join(line.removeprefix(fence[1]) for line in lines[start:number]) + "\n"
        number += 1
        assert language in EXECUTED + SHOWN, (
            f"line {start}: ```{language} is none of {EXECUTED + SHOWN}"
        )
        if language in EXECUTED:
            marker = MARKER.fullmatch(lines[start - 2].strip()) if start > 1 else None
            assert marker, (
                f"line {start}: no marker above the fence (run, run with: FLAGS, not run: REASON)"
            )
            found.append(Block(start, language, code, marker["flags"] or "", marker["reason"]))
    return found


@pytest.fixture
def scratch(tmp_path) -> Path:
    """A directory like a clone after `./run setup`: nothing is written to the repository."""
    for name in LINKS:
        (tmp_path / name).symlink_to(ROOT / name)
    venv = tmp_path / ".venv"
    venv.mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name not in ("installed", ".made_by_run"):
            (venv / path.name).symlink_to(path)
    stamp = subprocess.check_output(
        ["sh", "-c", "cat pyproject.toml constraints.txt | cksum"], cwd=ROOT, text=True
    )
    extras = ("", "dev", "gpu", "gpu,dev")
    (venv / "installed").write_text("".join(f"{stamp.strip()} [{extra}]\n" for extra in extras))
    return tmp_path


def run_here(block: Block, directory: Path, monkeypatch) -> None:
    """Run Python, or commands that need no shell, in this process, which has imported torch."""
    from accelerate.state import AcceleratorState

    monkeypatch.chdir(directory)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    if block.language == "python":
        script = directory / "block.py"
        script.write_text(block.code)
        runpy.run_path(str(script), run_name="__main__")
    for module, flags in block.commands:
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(sys, "argv", [module, *flags.split()])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert ended.value.code == 0, f"line {block.line}: {module} {flags}"
    AcceleratorState._reset_state(reset_partial_state=True)


def run(block: Block, directory: Path) -> subprocess.CompletedProcess:
    """Run a block of shell with this Python's commands first, offline."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        [block.language, "-ec", block.shell],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


FIRST: dict[
    str, Path
] = {}  # what the block that several pages begin with has left behind: it is run once


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_documented_command_runs_or_states_why_not(page, scratch, undrawn, monkeypatch):
    todo = [block for block in blocks(page.read_text(encoding="utf-8")) if block.reason is None]
    if todo and todo[0].code.startswith("./run demo"):
        key = f"./run demo {todo[0].flags}"
        if key in FIRST:
            shutil.copytree(FIRST[key], scratch / "runs")
            todo = todo[1:]
    for number, block in enumerate(todo):
        if block.language == "python" or block.commands:
            run_here(block, scratch, monkeypatch)
            continue
        done = run(block, scratch)
        assert done.returncode == 0, (
            f"{page}:{block.line}\n{block.shell}\n{done.stdout}\n{done.stderr[-3000:]}"
        )
        if number == 0 and block.code.startswith("./run demo"):
            FIRST[key] = Path(shutil.copytree(scratch / "runs", scratch / "first"))


@pytest.mark.parametrize(
    "marker",
    ["", "<!-- run it -->", "<!-- not run: -->", "<!-- run with: -->", "text", "<!-- run -->\n"],
)
def test_a_code_block_without_a_marker_or_a_reason_is_refused(marker):
    with pytest.raises(AssertionError, match="no marker"):
        blocks(f"text\n{marker}\n```sh\ntrue\n```\n")


def test_extra_flags_go_to_lth_scale_commands_only():
    code = (
        "echo a  # b\naccelerate launch -m lth_scale.imp \\\n    --task mlm   # minutes\n"
        "./run demo > log\n"
    )
    (block,) = blocks(f"<!-- run with: --max_steps 2 -->\n```sh\n{code}```\n")
    assert [" ".join(line.split()) for line in block.shell.splitlines()] == [
        "echo a # b",
        "accelerate launch -m lth_scale.imp --task mlm --max_steps 2 # minutes",
        "./run demo --max_steps 2 > log",
    ]


@pytest.mark.parametrize(
    "line", ["lth ticket a", "A=1 python -m lth_scale.imp", "python -m lth_scale.imp > log"]
)
def test_a_block_that_needs_a_shell_runs_in_one(line):
    code = "python -m lth_scale.imp --task mlm  # minutes\n"
    alone, mixed = blocks(
        f"<!-- run -->\n```sh\n{code}```\n<!-- run -->\n```sh\n{code}{line}\n```\n"
    )
    assert alone.commands == [("lth_scale.imp", " --task mlm")] and mixed.commands == []


def test_a_failing_command_is_reported(scratch, monkeypatch):
    (block,) = blocks("<!-- run -->\n```sh\npython -m lth_scale.ticket /no/such/run\n```\n")
    with pytest.raises(AssertionError, match="no/such/run"):
        run_here(block, scratch, monkeypatch)
    (block,) = blocks("<!-- run -->\n```sh\nfalse\ntrue\n```\n")
    assert run(block, scratch).returncode != 0

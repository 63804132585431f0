"""A rank that dies or hangs, and a launcher that does, end the others soon, with one line; and the command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lth_scale.config.resolution import resolve
from lth_scale.distributed.signals import STOP


class Launch:
    """A command on two gloo ranks under torchrun."""

    def __init__(
        self, flags: list[str], log: Path, *options: str, what: tuple = ("-m", "lth_scale.imp")
    ):
        self.out, self.log = Path(flags[flags.index("--output_dir") + 1]), log
        command = [
            Path(sys.executable).with_name("torchrun"),
            "--standalone",
            "--nproc_per_node",
            "2",
            *options,
        ]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        with log.open("w") as to:
            self.process = psutil.Popen(
                [*command, *what, *flags],
                stdout=to,
                stderr=to,
                env=environment,
                stdin=subprocess.DEVNULL,
            )

    def rank(self, number: int) -> psutil.Process:
        """A rank's process."""
        for child in self.process.children():
            if child.environ().get("RANK") == str(number):
                return child
        raise AssertionError(self.log.read_text())

    def until_checkpoint(self, name: str = "*/*/checkpoint-*/complete") -> None:
        """Wait until the search has written one."""
        until = time.monotonic() + 120
        while not list(self.out.glob(name)):
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)

    def end(self, seconds: float) -> tuple[int, str]:
        """Exit code and everything said, within `seconds`."""
        try:
            return self.process.wait(seconds), self.log.read_text()
        except psutil.TimeoutExpired:
            raise AssertionError(f"still there after {seconds} s: {self.log.read_text()}") from None
        finally:
            for process in (
                [*self.process.children(recursive=True), self.process]
                if self.process.is_running()
                else []
            ):
                process.kill()


@pytest.fixture
def flags(small, tmp_path):
    return small(max_steps=150, save_steps=30, target_sparsity=0.1)


@pytest.fixture(scope="module")
def undisturbed() -> list[bytes]:
    """The ticket of the command, filled in by the first test that needs it."""
    return []


@pytest.fixture
def expected(undisturbed, small, tmp_path) -> bytes:
    if not undisturbed:
        calm = small(
            max_steps=150, save_steps=30, target_sparsity=0.1, output_dir=tmp_path / "calm"
        )
        code, said = Launch(calm, tmp_path / "calm.log").end(180)
        assert code == 0, said
        undisturbed.append((tmp_path / "calm/ticket.safetensors").read_bytes())
    return undisturbed[0]


def test_a_rank_that_dies_is_named_once_and_the_launcher_goes_on_by_itself(
    flags, expected, tmp_path
):
    search = Launch(flags, tmp_path / "log", "--max_restarts", "2")
    search.until_checkpoint()
    search.rank(1).kill()
    code, said = search.end(180)
    assert code == 0, said
    assert (
        said.count("error: ") == 1
        and "error: rank 1 of 2 (" in said
        and ") is gone: no sign of life" in said
    )
    assert "Traceback" not in said and "goes on from step" in said
    assert (search.out / "ticket.safetensors").read_bytes() == expected


def test_a_rank_that_hangs_is_named_and_all_stop_within_the_timeout(flags, tmp_path):
    search = Launch([*flags, "--ddp_timeout", "20"], tmp_path / "log")
    search.until_checkpoint()
    hangs = search.rank(1)
    hangs.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    psutil.wait_procs([search.rank(0)], timeout=60)
    took = time.monotonic() - began
    hangs.send_signal(signal.SIGCONT)
    code, said = search.end(60)
    assert code == 1 and took < 20 + 10
    assert said.count("error: rank 1 of 2 (") == 1 and "run the same command again" in said


BROKEN = """
import os
from lth_scale import imp, training
from lth_scale.arguments import exit_on_bad_input

step = training.step_optimizer

def broken(net, rate):
    return step(net, rate) if net.step < 3 or os.environ["RANK"] == "0" else 1 / 0

training.step_optimizer = broken
exit_on_bad_input(imp.main)
"""


def test_what_fails_on_one_rank_alone_is_repeated_by_the_other(flags, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    code, said = Launch(flags, tmp_path / "log", what=(tmp_path / "broken.py",)).end(90)
    assert code == 1
    assert said.count("error: ") == 1 and "error: rank 1 of 2 (" in said
    assert ") ZeroDivisionError: division by zero; all ranks stop: " in said
    assert said.count("Traceback") == 2  # rank 1's own, and torchrun's


def test_a_launcher_that_is_killed_or_told_to_stop_leaves_a_checkpoint_behind(
    flags, expected, tmp_path
):
    search = Launch(flags, tmp_path / "log-0")
    search.until_checkpoint()
    ranks = [search.rank(0), search.rank(1)]
    search.process.kill()
    assert not psutil.wait_procs(ranks, timeout=30)[1]
    again = Launch(flags, tmp_path / "log-1")
    again.until_checkpoint("rounds/01/checkpoint-*/complete")
    again.process.terminate()
    code, said = again.end(60)
    assert (
        code != 0
        and "error: round 01 was asked to stop: " in said
        and " is written; start the same" in said
    ), said
    assert said.count("error: ") == 1
    code, said = Launch(flags, tmp_path / "log-2").end(120)
    assert code == 0 and "round 01: goes on from step" in said, said
    assert (again.out / "ticket.safetensors").read_bytes() == expected


MEETING = """
import os, signal
from lth_scale.sharding import Ranks
from lth_scale.watch import Requests

class Meeting:  # ranks one of which is sent SIGTERM while they agree
    def most(self, asked):
        os.kill(os.getpid(), signal.SIGTERM)
        return asked

requests = Requests()
with requests.heeded():
    print(requests.agreed(Meeting()), requests.agreed(Ranks()))
"""


def test_a_signal_that_comes_while_the_ranks_agree_is_heeded_at_the_next_call():
    """In a process of its own: what sends SIGTERM to itself is not to be the process that runs the other tests."""
    done = subprocess.run(
        [sys.executable, "-c", MEETING], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.split()) == (0, ["0", str(STOP)]), done


def test_every_command_takes_the_timeout_of_the_launched():
    assert resolve({"task": "sst2"}).ddp_timeout == 1800

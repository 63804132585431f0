"""If a rank or the launcher dies or hangs, the other ranks stop soon, with one line to say why."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lth_scale.config.errors import AGAIN
from lth_scale.config.resolution import resolve
from lth_scale.distributed.watchdog import STOP


class Launch:
    """A command on two gloo ranks under torchrun."""

    def __init__(
        self, flags: list[str], log: Path, *options: str, program: tuple = ("-m", "lth_scale.imp")
    ):
        self.out, self.log = Path(flags[flags.index("--output_dir") + 1]), log
        torchrun = Path(sys.executable).with_name("torchrun")
        command = [torchrun, "--standalone", "--nproc_per_node", "2", *options]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        with log.open("w") as to:
            self.process = psutil.Popen(
                [*command, *program, *flags],
                stdout=to,
                stderr=to,
                env=environment,
                stdin=subprocess.DEVNULL,
            )

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        for child in self.process.children():
            if child.environ().get("RANK") == str(number):
                return child
        raise AssertionError(self.log.read_text())

    def until_checkpoint(self, name: str = "*/*/checkpoint-*/complete") -> None:
        """Wait until the search has written a checkpoint."""
        until = time.monotonic() + 120
        while not list(self.out.glob(name)):
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)

    def end(self, seconds: float) -> tuple[int, str]:
        """The exit code and the log, within `seconds`."""
        try:
            return self.process.wait(seconds), self.log.read_text()
        except psutil.TimeoutExpired:
            raise AssertionError(f"running after {seconds} s: {self.log.read_text()}") from None
        finally:
            if self.process.is_running():
                for process in [*self.process.children(recursive=True), self.process]:
                    process.kill()


@pytest.fixture
def flags(small, tmp_path):
    return small(max_steps=150, save_steps=30, target_sparsity=0.1)


@pytest.fixture(scope="module")
def undisturbed() -> list[bytes]:
    """The ticket of an undisturbed search, added by the first test that needs it."""
    return []


@pytest.fixture
def expected(undisturbed, small, tmp_path) -> bytes:
    if not undisturbed:
        out = tmp_path / "undisturbed"
        flags = small(max_steps=150, save_steps=30, target_sparsity=0.1, output_dir=out)
        code, log = Launch(flags, tmp_path / "undisturbed.log").end(180)
        assert code == 0, log
        undisturbed.append((out / "ticket.safetensors").read_bytes())
    return undisturbed[0]


def test_a_dead_rank_is_named_once_and_the_launcher_restarts(flags, expected, tmp_path):
    search = Launch(flags, tmp_path / "log", "--max_restarts", "2")
    search.until_checkpoint()
    search.rank(1).kill()
    code, log = search.end(180)
    assert code == 0, log
    assert log.count("error: ") == 1 and "error: rank 1 of 2 (" in log
    assert ") is gone: no sign of life" in log
    assert "Traceback" not in log and "goes on from step" in log
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
    code, log = search.end(60)
    assert code == 1 and took < 20 + 10
    assert log.count("error: rank 1 of 2 (") == 1 and AGAIN in log


BROKEN = """
import os
from lth_scale import imp
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.training import loop

step = loop.step_optimizer

def broken(net, rate):
    return step(net, rate) if net.step < 3 or os.environ["RANK"] == "0" else 1 / 0

loop.step_optimizer = broken
exit_on_bad_input(imp.main)
"""


def test_the_error_of_one_rank_is_printed_by_the_other(flags, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    code, log = Launch(flags, tmp_path / "log", program=(tmp_path / "broken.py",)).end(90)
    assert code == 1
    assert log.count("error: ") == 1 and "error: rank 1 of 2 (" in log
    assert ") ZeroDivisionError: division by zero; all ranks stop: " in log
    assert log.count("Traceback") == 2  # rank 1's own, and torchrun's


def test_a_killed_or_terminated_launcher_leaves_a_checkpoint(flags, expected, tmp_path):
    search = Launch(flags, tmp_path / "log-0")
    search.until_checkpoint()
    ranks = [search.rank(0), search.rank(1)]
    search.process.kill()
    assert not psutil.wait_procs(ranks, timeout=30)[1]
    again = Launch(flags, tmp_path / "log-1")
    again.until_checkpoint("rounds/01/checkpoint-*/complete")
    again.process.terminate()
    code, log = again.end(60)
    assert code != 0 and "error: round 01 was asked to stop: " in log, log
    assert f" is written; {AGAIN}" in log
    assert log.count("error: ") == 1
    code, log = Launch(flags, tmp_path / "log-2").end(120)
    assert code == 0 and "round 01: goes on from step" in log, log
    assert (again.out / "ticket.safetensors").read_bytes() == expected


MEETING = """
import os, signal
from lth_scale.distributed.pieces import Ranks
from lth_scale.distributed.watchdog import SignalHandler

class Meeting:  # ranks of which one receives SIGTERM meanwhile
    def max(self, request):
        os.kill(os.getpid(), signal.SIGTERM)
        return request

signals = SignalHandler()
with signals.deferred():
    print(signals.poll(Meeting()), signals.poll(Ranks()))
"""


def test_a_signal_during_a_poll_is_returned_by_the_next_one():
    """In a process of its own, which sends SIGTERM to itself."""
    done = subprocess.run(
        [sys.executable, "-c", MEETING], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.split()) == (0, ["0", str(STOP)]), done


def test_the_default_timeout_is_half_an_hour():
    assert resolve({"task": "sst2"}).ddp_timeout == 1800

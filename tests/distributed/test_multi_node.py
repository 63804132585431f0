"""Two machines with an `accelerate launch` each: network namespaces on one virtual cable."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from test_launch import SHORT

pytestmark = pytest.mark.machine

ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch"]
ADDRESSES = ["10.99.0.10", "10.99.0.11"]
CONFIG = Path(__file__).parents[2] / "accelerate_configs/multi_node_zero3.yaml"
LAUNCHES = {
    "ddp": (
        {"ACCELERATE_USE_CPU": "true"},
        ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no"],
    ),
    "zero3": ({}, ["--config_file", str(CONFIG)]),
}
SECONDS = 400


def succeed(*command: str) -> None:
    """Run a command. Raises OSError with what it printed if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stdout.strip()}")


def boot() -> subprocess.Popen:
    """Start a machine: a shell with a network and processes of its own.

    It lives until its standard input is closed, at the latest when pytest ends; the kernel then
    kills every process of the machine.
    """
    namespaces = ["unshare", "--net", "--pid", "--fork", "--mount-proc"]
    unshare = [*namespaces, "sh", "-c", "echo up; exec cat"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    shell = subprocess.Popen(unshare, text=True, **pipes)
    if (line := shell.stdout.readline().strip()) != "up":
        shell.communicate()
        raise OSError(line)
    return shell


@pytest.fixture
def machines() -> Iterator[list[list[str]]]:
    """For each of two machines on one cable, the prefix of a command that runs there."""
    with ExitStack() as stack:
        try:
            zero, one = pids = [str(stack.enter_context(boot()).pid) for _ in ADDRESSES]
            ends = f"eth0 netns {zero} type veth peer name eth0 netns {one}"
            succeed("ip", "link", "add", *ends.split())
        except OSError as problem:
            pytest.skip(f"no network namespaces here ({problem})")
        enter = [
            ["nsenter", "-n", "-m", "-t", pid, f"-p/proc/{pid}/ns/pid_for_children"] for pid in pids
        ]
        for n, address in enumerate(ADDRESSES):
            plug = f"ip link set lo up; ip link set eth0 up; ip address add {address}/24 dev eth0"
            succeed(*enter[n], "sh", "-ec", plug)
        yield enter


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """No GPU, and the device that gloo listens on, else the host name's, which is 127.0.0.1."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "eth0"}


def search(out: Path, steps: int) -> list[str]:
    """The flags of a search of `steps` steps a round."""
    return [
        *("-m", "lth_scale.imp", "--task", "sst2", *SHORT, "--max_steps", str(steps)),
        *("--control", "none", "--report_to", "none", "--output_dir", str(out)),
    ]


@cache  # a fixture of the module would run even if the tests are skipped
def ticket_of_one_process() -> bytes:
    """The one-shot ticket of one process."""
    with TemporaryDirectory() as out:
        subprocess.run([sys.executable, *search(Path(out), 0)], check=True, timeout=SECONDS)
        return Path(out, "ticket.safetensors").read_bytes()


def run_on(
    machines: list[list[str]], kind: str, environment: dict[str, str], flags: list[str], logs: Path
) -> str:
    """Launch on both machines at once and return what they printed. Fails when one of them does."""
    extra, launch = LAUNCHES[kind]
    both = [
        *("--num_machines", "2", "--num_processes", "2"),
        *("--main_process_ip", ADDRESSES[0], "--main_process_port", "29500"),
    ]
    written, running = [logs / f"{rank}.log" for rank in (0, 1)], []
    for rank, enter in enumerate(machines):
        command = [*enter, *ACCELERATE, *launch, *both, "--machine_rank", str(rank), *flags]
        with written[rank].open("w") as log:
            streams = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            running.append(subprocess.Popen(command, env=environment | extra, **streams))
    deadline = time.monotonic() + SECONDS
    ended: list[int | None] = [None]
    while None in ended and not any(ended) and time.monotonic() < deadline:
        time.sleep(0.1)
        ended = [process.poll() for process in running]
    printed = "\n".join(log.read_text() for log in written)
    assert ended == [0, 0], printed
    return printed


@pytest.mark.parametrize("kind", LAUNCHES)
def test_two_machines_find_the_ticket_of_one_process(kind, machines, environment, tmp_path):
    run_on(machines, kind, environment, search(tmp_path / "out", 0), tmp_path)
    assert (tmp_path / "out/ticket.safetensors").read_bytes() == ticket_of_one_process()


def test_two_machines_train_to_the_last_round(machines, environment, tmp_path):
    printed = run_on(machines, "zero3", environment, search(tmp_path / "out", 2), tmp_path)
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert [round(row["sparsity"], 3) for row in rows] == [0, 0.1, 0.2, 0.3]
    assert {row["steps"] for row in rows} == {2}
    assert (tmp_path / "out/complete").is_file() and printed.count("| round |") == 1

"""Two machines, each with its own `accelerate launch` on the CPU: two network namespaces on one virtual cable."""

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
    """Run a command; OSError with what it printed where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stdout.strip()}")


def boot() -> subprocess.Popen:
    """A machine: a shell whose network and processes are its own, for as long as its standard input is open.

    That ends with pytest, however pytest ends, and then the kernel kills every process of the machine.
    """
    unshare = [
        "unshare",
        "--net",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        "echo up; exec cat",
    ]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    shell = subprocess.Popen(unshare, text=True, **pipes)
    if (said := shell.stdout.readline().strip()) != "up":
        shell.communicate()
        raise OSError(said)
    return shell


@pytest.fixture
def machines() -> Iterator[list[list[str]]]:
    """For each of two machines on one cable, what to put before a command so that it runs there."""
    with ExitStack() as stack:
        try:
            zero, one = pids = [str(stack.enter_context(boot()).pid) for _ in ADDRESSES]
            succeed(
                "ip",
                "link",
                "add",
                "eth0",
                "netns",
                zero,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                one,
            )
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
    """No GPU; the device that gloo listens on (else it takes the host name's, here 127.0.0.1)."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "eth0"}


def search(out: Path, steps: int) -> list[str]:
    """The flags of a search of `steps` steps a round."""
    return [
        "-m",
        "lth_scale.imp",
        "--task",
        "sst2",
        *SHORT,
        "--max_steps",
        str(steps),
        "--control",
        "none",
        "--report_to",
        "none",
        "--output_dir",
        str(out),
    ]


@cache  # a fixture for the module would run also where the tests are skipped
def ticket_of_one_process() -> bytes:
    """The ticket of θ₀ as one process finds it."""
    with TemporaryDirectory() as out:
        subprocess.run([sys.executable, *search(Path(out), 0)], check=True, timeout=SECONDS)
        return Path(out, "ticket.safetensors").read_bytes()


def run_on(
    machines: list[list[str]], kind: str, environment: dict[str, str], flags: list[str], logs: Path
) -> str:
    """Launch on both machines at once and return what they printed; fails as soon as one of them does."""
    extra, launch = LAUNCHES[kind]
    both = [
        "--num_machines",
        "2",
        "--num_processes",
        "2",
        "--main_process_ip",
        ADDRESSES[0],
        "--main_process_port",
    ]
    written, running = [logs / f"{rank}.log" for rank in (0, 1)], []
    for rank, enter in enumerate(machines):
        command = [
            *enter,
            *ACCELERATE,
            *launch,
            *both,
            "29500",
            "--machine_rank",
            str(rank),
            *flags,
        ]
        with written[rank].open("w") as log:
            streams = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            running.append(subprocess.Popen(command, env=environment | extra, **streams))
    deadline = time.monotonic() + SECONDS
    while (
        None in (ended := [process.poll() for process in running])
        and not any(ended)
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    printed = "\n".join(log.read_text() for log in written)
    assert ended == [0, 0], printed
    return printed


@pytest.mark.parametrize("kind", LAUNCHES)
def test_two_machines_find_the_ticket_of_one_process(kind, machines, environment, tmp_path):
    run_on(machines, kind, environment, search(tmp_path / "out", 0), tmp_path)
    assert (tmp_path / "out/ticket.safetensors").read_bytes() == ticket_of_one_process()


def test_two_machines_train_to_the_last_round_and_one_of_them_speaks(
    machines, environment, tmp_path
):
    printed = run_on(machines, "zero3", environment, search(tmp_path / "out", 2), tmp_path)
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert [(round(row["sparsity"], 3), row["steps"]) for row in rows] == [
        (0, 2),
        (0.1, 2),
        (0.2, 2),
        (0.3, 2),
    ]
    assert (tmp_path / "out/complete").is_file() and printed.count("| round |") == 1

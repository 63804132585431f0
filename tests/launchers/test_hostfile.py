"""deepspeed_hostfile.sh between two machines (network namespaces), each with a real sshd."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_multi_node import ADDRESSES, machines, succeed  # noqa: F401 (machines is a fixture)

pytestmark = pytest.mark.machine

ROOT = Path(__file__).parents[2]
SSHD = "/usr/sbin/sshd"
CLIENT = """#!/bin/sh
exec /usr/bin/ssh -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"
"""


@pytest.fixture
def launch(machines, tmp_path):  # noqa: F811
    """Starts the launcher on the first machine, with these flags, for both."""
    if not Path(SSHD).exists() or os.geteuid():
        pytest.skip("needs root and openssh-server")
    key = tmp_path / "key"
    succeed("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    options = [f"HostKey={key}", f"AuthorizedKeysFile={key}.pub", "StrictModes=no", "PidFile=none"]
    for core, enter in zip(("0", str(os.cpu_count() - 1)), machines, strict=True):
        serve = ["taskset", "-c", core, SSHD, *(f"-o{each}" for each in options)]
        succeed(*enter, "sh", "-c", 'mkdir -p /run/sshd; exec "$@"', "sh", *serve)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(CLIENT.format(key=key))
    (tmp_path / "bin/ssh").chmod(0o755)
    (tmp_path / "hosts").write_text(
        "# two machines\n" + "".join(f"{host} slots=1\n" for host in ADDRESSES)
    )
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "CONFIG": "accelerate_configs/multi_cpu.yaml",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "eth0",
    }
    enter = [machines[0][0], f"-w{ROOT}", *machines[0][1:]]

    def go(*flags: str) -> subprocess.Popen:
        command = [*enter, "launchers/deepspeed_hostfile.sh", str(tmp_path / "hosts"), *flags]
        streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return subprocess.Popen(command, env=environment, text=True, **streams)

    return go


def test_a_search_on_two_hosts_stops_with_the_launcher_and_resumes(launch, small, tmp_path):
    flags = small(max_steps=24, save_steps=4, target_sparsity=0.1)
    script = launch(*flags)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").glob("rounds/*/checkpoint-*/complete")):
        assert script.poll() is None and time.monotonic() < deadline, script.communicate()[0]
        time.sleep(0.1)
    psutil.Process(script.pid).children()[0].terminate()  # nsenter's only child is the script
    script.communicate(timeout=300)
    assert script.returncode != 0
    again = launch(*flags)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "goes on from step" in said, said
    calm = launch(
        *small(max_steps=24, save_steps=4, target_sparsity=0.1, output_dir=tmp_path / "calm")
    )
    said, _ = calm.communicate(timeout=300)
    assert calm.returncode == 0, said
    assert (tmp_path / "out/ticket.safetensors").read_bytes() == (
        tmp_path / "calm/ticket.safetensors"
    ).read_bytes()


def test_one_failing_host_stops_the_others_and_the_launcher(launch, small, tmp_path):
    (tmp_path / "hosts").write_text(f"{ADDRESSES[0]} slots=1\n10.99.0.99 slots=1\n")
    script = launch(*small())
    said, _ = script.communicate(timeout=120)
    assert script.returncode != 0 and "10.99.0.99" in said

"""imp.sbatch under a real Slurm: two nodes on this machine that go with the test, in namespaces of
their own.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from test_multi_node import boot, succeed

pytestmark = pytest.mark.machine

ROOT = Path(__file__).parents[2]
IMP = "launchers/slurm/imp.sbatch"
PATH = f"/usr/sbin:{os.environ['PATH']}"
DAEMONS = ("munged", "slurmctld", "slurmd")
SECONDS = 400
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={home}/munge.socket,cred_expire=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/linear
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
NodeName=c0 NodeHostname={host} NodeAddr=127.0.0.1 Port=17018
NodeName=c1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17019
PartitionName=low Nodes=c0,c1 Default=YES PriorityTier=1 GraceTime=120
PartitionName=high Nodes=c0,c1 PriorityTier=2
"""  # a requeued job may start after cred_expire seconds, 120 by default
NETWORK = """
ip link set lo up
ip link add eth0 type veth peer name eth1
ip link set eth0 up
ip link set eth1 up
ip address add 10.98.0.1/24 dev eth0
"""  # with loopback alone Slurm cannot resolve 127.0.0.1
START = """
munged --foreground --force --key-file {home}/key --socket {home}/munge.socket --pid-file {home}/munged.pid \
    --log-file {home}/munged.log --seed-file {home}/seed &
until [ -S {home}/munge.socket ]; do sleep 0.1; done
slurmctld -D -c & taskset -c 0 slurmd -D -N c0 & taskset -c $(($(nproc --all) - 1)) slurmd -D -N c1 &
"""  # a core each: sums on another number of threads have other last bits


class Cluster:
    """Commands inside the machine whose process is `pid`."""

    def __init__(self, pid: int, home: Path):
        self.home = home
        self.enter = [
            "nsenter",
            f"-w{ROOT}",
            "-n",
            "-m",
            "-t",
            str(pid),
            f"-p/proc/{pid}/ns/pid_for_children",
        ]
        self.environment = os.environ | {
            "SLURM_CONF": str(home / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{PATH}",
            "CUDA_VISIBLE_DEVICES": "",
            "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": "lo",
            "CONFIG": "accelerate_configs/multi_cpu.yaml",
            "MASTER_ADDR": "127.0.0.1",
        }

    def ask(self, *command: str) -> str:
        """What a command says on standard output; its failure is the test's."""
        given = dict(env=self.environment, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
        return subprocess.run(
            [*self.enter, *command], stdout=subprocess.PIPE, check=True, **given
        ).stdout

    def submit(self, *arguments: str) -> str:
        """Put imp.sbatch into the queue; its job's number."""
        return self.ask("sbatch", "--parsable", f"--output={self.home}/%j.log", *arguments).strip()

    def log(self, job: str) -> str:
        path = self.home / f"{job}.log"
        return path.read_text() if path.exists() else ""

    def show(self, job: str, name: str) -> list[str]:
        """What `scontrol` says under a name of a job, or of each task of an array."""
        return re.findall(rf" {name}=(\S+)", self.ask("scontrol", "-o", "show", "job", job))

    def wait(self, job: str, until: Callable[[], object]) -> None:
        """Until something is so; fails with the log after a while."""
        deadline = time.monotonic() + SECONDS
        while not until():
            assert time.monotonic() < deadline, f"{self.show(job, 'JobState')}\n{self.log(job)}"
            time.sleep(0.1)

    def finish(self, job: str, state: str = "COMPLETED") -> str:
        """Wait until a job has left Slurm, in this state; its log."""
        self.wait(job, lambda: not self.ask("squeue", "-h", "-j", job))
        assert set(self.show(job, "JobState")) == {state}, self.log(job)
        return self.log(job)

    @contextmanager
    def frozen(self, job: str, out: Path) -> Iterator[None]:
        """Holds the ranks of a search from its first checkpoint to the end of the block."""
        self.wait(job, lambda: list(out.glob("rounds/*/checkpoint-*/complete")))
        ranks = [each for each in psutil.process_iter() if is_rank(each, out)]
        for rank in ranks:
            rank.suspend()
        yield
        for rank in ranks:
            rank.resume()
        assert len(ranks) == 2


def is_rank(process: psutil.Process, out: Path) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return command[1:4] == ["-u", "-m", "lth_scale.imp"] and str(out) in command


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Two idle nodes. All processes end with the shell that `boot` starts, however pytest ends."""
    missing = [name for name in DAEMONS if not shutil.which(name, path=PATH)]
    if missing or os.geteuid():
        pytest.skip(
            f"needs root and Debian's slurm-wlm and munge (missing: {', '.join(missing) or 'root'})"
        )
    home = tmp_path_factory.mktemp("slurm")
    (home / "state").mkdir()
    (home / "slurm.conf").write_text(CONF.format(home=home, host=socket.gethostname()))
    (home / "key").write_bytes(os.urandom(1024))
    (home / "key").chmod(0o600)
    try:
        machine = boot()
    except OSError as problem:
        pytest.skip(f"no namespaces here ({problem})")
    with machine, (home / "daemons.log").open("w") as log:
        here = Cluster(machine.pid, home)
        succeed(*here.enter, "sh", "-ec", NETWORK)
        start = [*here.enter, "sh", "-c", START.format(home=home)]
        subprocess.run(
            start,
            env=here.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
        )
        until = time.monotonic() + 60
        while here.ask("sinfo", "-hNp", "low", "-o%t").split() != ["idle", "idle"]:
            assert time.monotonic() < until, (home / "daemons.log").read_text()
            time.sleep(0.5)
        yield here
        machine.stdin.close()  # the kernel ends what runs there


@pytest.fixture
def flags(small):
    """Of a search of two rounds; on two ranks the first checkpoint comes long before its end."""
    return lambda out: small(output_dir=out, max_steps=24, save_steps=4, target_sparsity=0.1)


@pytest.fixture(scope="module")
def tickets() -> list[bytes]:
    """The ticket of that search on two ranks without Slurm, filled in by the first test that needs
    it.
    """
    return []


@pytest.fixture
def expected(tickets, cluster, flags, tmp_path) -> bytes:
    if not tickets:
        cluster.ask("launchers/torchrun.sh", "2", *flags(tmp_path / "torchrun"))
        tickets.append((tmp_path / "torchrun/ticket.safetensors").read_bytes())
    return tickets[0]


def test_two_nodes_find_the_same_ticket_as_two_ranks(cluster, flags, expected, tmp_path):
    job = cluster.submit("--nodes=2", IMP, *flags(tmp_path / "out"))
    log = cluster.finish(job)
    assert (tmp_path / "out/ticket.safetensors").read_bytes() == expected
    assert "goes on" not in log and cluster.show(job, "Restarts") == ["0"]


def test_a_job_checkpoints_and_requeues_itself_before_its_time_limit(
    cluster, flags, expected, tmp_path
):
    began = time.monotonic()
    job = cluster.submit("--nodes=2", IMP, *flags(tmp_path / "out"))
    with cluster.frozen(job, tmp_path / "out"):
        minutes = (
            int(time.monotonic() - began) // 60 + 2
        )  # less than the three that --signal asks for are left
        cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        cluster.wait(job, lambda: "asked to make room" in cluster.log(job))
    cluster.wait(job, lambda: "back to the queue" in cluster.log(job))
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED")
    log = cluster.finish(job)
    assert "was asked to stop: " in log and "round 00: goes on from step" in log
    assert cluster.show(job, "Restarts") == ["1"]
    assert (tmp_path / "out/ticket.safetensors").read_bytes() == expected


def test_a_preempted_search_resumes_after_the_other_job(cluster, flags, expected, tmp_path):
    job = cluster.submit("--nodes=2", IMP, *flags(tmp_path / "out"))
    with cluster.frozen(job, tmp_path / "out"):
        other = cluster.submit("--nodes=2", "--partition=high", "--wrap=sleep 3")
        cluster.wait(job, lambda: "None" not in cluster.show(job, "PreemptTime"))
    cluster.finish(other)
    assert not (tmp_path / "out/complete").exists()
    log = cluster.finish(job)
    assert "was asked to stop: " in log and "round 00: goes on from step" in log
    assert cluster.show(job, "Restarts") == ["1"]
    assert (tmp_path / "out/ticket.safetensors").read_bytes() == expected


def test_a_failed_or_cancelled_job_is_not_requeued(cluster, flags, tmp_path):
    fails = cluster.submit("--nodes=2", IMP, *flags(tmp_path / "out"), "--prune_rate", "7")
    log = cluster.finish(fails, "FAILED")
    assert "error: --prune_rate 7.0: out of range" in log and cluster.show(fails, "Restarts") == [
        "0"
    ]
    unwanted = cluster.submit("--nodes=2", IMP, *flags(tmp_path / "out"))
    cluster.wait(unwanted, lambda: list((tmp_path / "out").glob("rounds/*/checkpoint-*/complete")))
    cluster.ask("scancel", unwanted)
    cluster.finish(unwanted, "CANCELLED")
    assert cluster.show(unwanted, "Restarts") == ["0"]


STUDY = """
tasks: [sst2]
seeds: [1, 2]
sparsities: [0.1]
controls: [random_mask]
"""


def test_array_tasks_share_a_study_and_a_preempted_one_resumes(cluster, small, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    flags = small(output_dir=tmp_path / "study", task=None, target_sparsity=None)
    array = cluster.submit("--array=1-2", IMP, str(tmp_path / "study.yaml"), *flags)
    cluster.wait(
        array, lambda: "[1/2]" in cluster.log(array)
    )  # the last task's job has the array's number
    cluster.ask("scancel", "--signal=USR1", "--batch", f"{array}_2")
    assert "back to the queue" in cluster.finish(array)
    assert cluster.show(array, "ArrayTaskId") == ["2", "1"] and cluster.show(array, "Restarts") == [
        "1",
        "0",
    ]
    logs = sorted((tmp_path / "study/jobs").glob("*.log"))
    assert sorted(log.read_text().count("$ ") for log in logs) == [
        1,
        1,
        1,
        2,
    ]  # the job of that moment ran again
    assert all(log.with_suffix("").joinpath("complete").is_file() for log in logs)

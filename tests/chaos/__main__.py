"""Kill real commands N times in all, start each again, and compare what they write.

`python -m tests.chaos --kills 200` exits with 1 if a command did not resume, or wrote anything else
than an uninterrupted one. Between two attempts, file times and the clock change by up to a day, and
all directories hold files of others.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.hub_server import Hub, environment

from .kinds import PLANTED, Export, Kind, Push, Report, Search, Speed, Study, Transfer
from .victim import MOMENTS, TERMINATED

os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads would not survive a fork

ANY = "at any moment"
DAY = 86_400
COMMANDS = ("imp", "transfer", "study", "report", "export", "speed", "hub")


@dataclass
class Kill:
    """One kill, and its result."""

    kind: str
    moment: str
    resumed: bool = False
    identical: bool = False


def kinds(hub: Hub, launched: bool) -> list[Kind]:
    """Return the commands to run, each after those it needs."""
    search = Search("imp, one process", "lth_scale.imp", parts=6)
    study = Study("study, 2 shares", "lth_scale.study", processes=2, parts=3)
    under = "imp, accelerate launch, 2 ranks"
    return [
        search,
        Search("imp, 2 gloo ranks", "lth_scale.imp", processes=2, parts=6, ranks=True),
        *(
            [Search(under, "lth_scale.imp", processes=2, parts=6, launched=True)]
            if launched
            else []
        ),
        Transfer("transfer, 2 seeds", "lth_scale.transfer", parts=3, needs=search),
        study,
        Report("report", "lth_scale.report", needs=study),
        Export("export, csr", "lth_scale.export", needs=search),
        Export("export, compact", "lth_scale.export", needs=search, format="compact"),
        Speed("speed", "lth_scale.speed", needs=search),
        Push("hub push", "lth_scale.hub", needs=search, hub=hub),
    ]


def variables(
    kind: Kind, home: Path, trap: str, clock: float, rank: int | None, port: int
) -> dict[str, str]:
    found = {
        "CHAOS": trap,
        "CHAOS_CLOCK": str(clock),
        "CHAOS_HOME": str(home),
        "ACCELERATE_USE_CPU": "true",
    }
    found |= {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
    found |= {"HF_HUB_OFFLINE": "0" if isinstance(kind, Push) else "1"}
    if rank is not None:
        found |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(kind.processes)}
        found |= {
            "LOCAL_WORLD_SIZE": str(kind.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    return found


def start(kind: Kind, home: Path, moment: str, n: int, which: int, clock: float = 0) -> list[int]:
    """Start the command with a trap in one of its processes; return the child processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = os.open(home / "out.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    if kind.launched:
        accelerate = Path(sys.executable).with_name("accelerate")
        command = [
            accelerate,
            "launch",
            "--multi_gpu",
            "--num_processes",
            str(kind.processes),
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            str(port),
            "-m",
            "tests.chaos.victim",
            kind.module,
            *kind.flags(home, 0),
        ]
        own = os.environ | variables(kind, home, f"{moment}:{n}:{which}", clock, None, port)
        return [
            subprocess.Popen(
                command,
                env=own,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            ).pid
        ]
    children: list[int] = []
    for index in range(kind.processes):
        trap = f"{moment if index == which else ''}:{n}:{index if kind.ranks else 0}"
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(log, 1), os.dup2(log, 2)
            os.environ.update(
                variables(kind, home, trap, clock, index if kind.ranks else None, port)
            )
            sys.argv = ["victim", kind.module, *kind.flags(home, index)]
            importlib.import_module(f"{__package__}.victim").main()
        children.append(child)
    os.close(log)
    return children


def wait(kind: Kind, children: list[int], until: float) -> list[int] | None:
    """Return the exit codes, or None at `until`. Once a rank has died, the others are killed."""
    codes: dict[int, int] = {}
    dead = math.inf
    while len(codes) < len(children):
        for child in [each for each in children if each not in codes]:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                dead = min(dead, time.monotonic()) if codes[child] else dead
        now = time.monotonic()
        if kind.ranks and now > dead + (1 if -signal.SIGKILL in codes.values() else 60):
            kill(descendants())  # the others have seen it, or not
        if now > until:
            return None
        time.sleep(0.02)
    return [codes[child] for child in children]


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def kill(processes: list[psutil.Process]) -> None:
    for each in processes:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue


def attempt(kind: Kind, home: Path, moment: str, rng: random.Random) -> bool:
    """Run the command until it ends or dies; return True if it was killed."""
    step_times(home, rng.uniform(-DAY, DAY))
    n, which = (
        rng.randint(1, max(1, kind.counts[moment] // kind.parts)),
        rng.randrange(kind.processes),
    )
    children = start(kind, home, moment, n, which, rng.uniform(-DAY, DAY))
    limit = rng.uniform(0.1, 1) * kind.seconds if moment == ANY else 300
    codes = wait(kind, children, time.monotonic() + limit)
    if codes is None:
        assert moment == ANY, f"it hangs; see {home / 'out.log'}"
        living = descendants()
        alone = isinstance(kind, Study) and rng.random() < 0.6  # a share or a job: the others go on
        kill(rng.sample(living, 1) if alone and living else living)
        codes = wait(kind, children, time.monotonic() + 300)
        assert codes is not None, f"it hangs; see {home / 'out.log'}"
    time.sleep(1 if kind.launched else 0)  # what the launcher started ends with it
    assert moment != TERMINATED or {*codes} <= {0, 1}, f"exit codes {codes}; see {home / 'out.log'}"
    check_checkpoints(home)
    return any(codes)


def plant(home: Path) -> set[Path]:
    """Write files of others into every directory except unfinished ones; return their paths."""
    planted = set()
    for directory in [
        home,
        *(path for path in home.rglob("*") if path.is_dir() and ".tmp" not in str(path)),
    ]:
        for name, text in PLANTED.items():
            if directory.is_dir():  # and has not just been deleted by a job that goes on
                (directory / name).write_text(text)
                planted.add(directory / name)
    return planted


def are_intact(planted: set[Path]) -> bool:
    """Return True if no file of others is missing or changed."""
    return all(path.is_file() and path.read_text() == PLANTED[path.name] for path in planted)


def step_times(home: Path, seconds: float) -> None:
    """Make all files older, or newer."""
    for path in home.rglob("*"):
        try:
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime + seconds))
        except FileNotFoundError:
            continue


def check_checkpoints(home: Path) -> None:
    """Check that the checkpoint named in the last line of a log exists and is complete."""
    for log in home.rglob("*.log"):
        last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
        told = re.search(r"asked to stop: (\S+) is written", last)
        assert not told or Path(told[1], "complete").is_file(), f"{log}: {last}"


def new_home(kind: Kind, base: Path, number: int) -> Path:
    """Create a directory for a run, with an MLflow store that needs no migrations."""
    home = base / f"{number:03d}"
    home.mkdir()
    shutil.copy(base / "mlflow.db", home)
    kind.prepare(home)
    return home


def baseline(kind: Kind, base: Path, number: int) -> None:
    """Run the command once without a kill, as the reference for all others."""
    kind.home, counts = new_home(kind, base, number), base / f"counts-{number}"
    counts.mkdir()
    os.environ["CHAOS_COUNTS"] = str(counts)
    codes = wait(kind, start(kind, kind.home, "", 0, 0), time.monotonic() + 600)
    del os.environ["CHAOS_COUNTS"]
    assert codes is not None and not any(codes), (kind.home / "out.log").read_text()
    noted = [json.loads(path.read_text()) for path in counts.iterdir()]
    for each in noted:
        kind.counts |= Counter(each["seen"])
    kind.expected, kind.seconds = kind.outcome(kind.home), max(each["seconds"] for each in noted)
    for name in noted[0]["modules"]:  # so that what is forked later finds them loaded
        try:
            importlib.import_module(name)
        except Exception:
            continue


def run(kind: Kind, home: Path, moments: list[str], rng: random.Random) -> list[Kill]:
    """Kill one run at each of the moments in turn until it is done, then let it finish."""
    kills, planted = list[Kill](), set[Path]()
    for moment in [*moments, "none"]:
        planted |= plant(home)
        if done := not attempt(kind, home, moment, rng):
            break
        kills.append(Kill(kind.name, moment))
    kills = kills[: len(moments)]  # the last one was none
    found = kind.outcome(home) if done else {}
    differ = [name for name, value in kind.expected.items() if found.get(name) != value]
    differ += [] if are_intact(planted) else ["files of others"]
    for each in kills:
        each.resumed, each.identical = done, not differ
    if differ:
        print(f"not what it should be: {home}: {', '.join(differ)}", flush=True)
    return kills


def table(kills: list[Kill]) -> str:
    lines = ["| command | killed | kills | resumed | identical |", "|---|---|--:|--:|--:|"]
    for key in sorted({(each.kind, each.moment) for each in kills}):
        these = [each for each in kills if (each.kind, each.moment) == key]
        lines.append(
            f"| {key[0]} | {key[1]} | {len(these)} | {sum(each.resumed for each in these)} "
            f"| {sum(each.identical for each in these)} |"
        )
    resumed, identical = sum(k.resumed for k in kills), sum(k.identical for k in kills)
    lines.append(f"| all | | {len(kills)} | {resumed} | {identical} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(COMMANDS), help=f"some of {','.join(COMMANDS)}")
    parser.add_argument("--launched", action="store_true", help="also under `accelerate launch`")
    given = parser.parse_args()
    rng, base, hub = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="chaos-")), Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    os.environ.update(
        {**environment(hub, base / "hf"), "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    )
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom lth_scale.tracking.mlflow.connection import connect\n"
            "connect(sys.argv[1])",
            f"sqlite:///{base / 'mlflow.db'}",
        ],
        check=True,
    )
    every = kinds(hub, given.launched)
    wanted = [each for each in every if re.split("[, ]", each.name)[0] in given.only.split(",")]
    for number, kind in enumerate(
        each for each in every if each in wanted or any(w.needs is each for w in wanted)
    ):
        baseline(kind, base, number)
        print(f"{kind.name}: {kind.seconds:.0f} s uninterrupted, {dict(kind.counts)}", flush=True)
    kills: list[Kill] = []
    for number, kind in enumerate(itertools.cycle(wanted)):
        reached = [each for each in MOMENTS if kind.counts[each]]
        most = min(
            6 if kind.parts > 1 else 3, max(1, given.kills // len(wanted)), given.kills - len(kills)
        )
        kills += run(
            kind, new_home(kind, base, 100 + number), rng.sample([*reached, ANY, ANY], most), rng
        )
        if len(kills) == given.kills:
            break
    print(table(kills))
    if not all(each.identical for each in kills):
        sys.exit(1)
    shutil.rmtree(base)


if __name__ == "__main__":
    main()

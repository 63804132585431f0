"""Kill real searches with SIGKILL until they have died N times, start each again, and compare what they find.

`python -m tests.chaos --kills 200`; exits with 1 where a search did not go on, or did not find what it should have.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .victim import MOMENTS

os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads would not survive a fork

FLAGS = [
    "--task", "sst2", "--preset", "demo", "--max_steps", "6", "--save_steps", "2", "--logging_steps", "1",
    "--max_train_samples", "256", "--per_device_train_batch_size", "8", "--max_eval_samples", "16",
    "--target_sparsity", "0.3", "--rewind_step", "1", "--control", "random_mask",
]  # fmt: skip
ANY = "at any moment"
VARIABLE = ("seconds", "peak_memory")


@dataclass
class Kind:
    """How a search is run: so many ranks, forked from a parent that has all modules loaded, or really launched."""

    name: str
    ranks: int
    launched: bool = False
    expected: dict = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)
    seconds: float = 0.0


@dataclass
class Kill:
    """One kill, and what came of it."""

    kind: str
    moment: str
    resumed: bool = False
    identical: bool = False


def environment(kind: Kind, rank: int, port: int, trap: str) -> dict[str, str]:
    found = os.environ | {"CHAOS": trap, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if kind.ranks > 1 and not kind.launched:
        found |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(kind.ranks)}
        found |= {"LOCAL_WORLD_SIZE": str(kind.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return found | {"ACCELERATE_USE_CPU": "true"}


def start(kind: Kind, out: Path, trap: str) -> list[int]:
    """Start the command; the processes that have to be waited for. All are in one session, the first one's."""
    flags = [*FLAGS, "--output_dir", str(out)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = os.open(out.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    if kind.launched:
        accelerate = Path(sys.executable).with_name("accelerate")
        command = [accelerate, "launch", "--multi_gpu", "--num_processes", str(kind.ranks), "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port),
                   "-m", "tests.chaos.victim", *flags]  # fmt: skip
        return [subprocess.Popen(command, env=environment(kind, 0, port, trap), stdout=log, stderr=log,
                                 stdin=subprocess.DEVNULL, start_new_session=True).pid]  # fmt: skip
    children: list[int] = []
    for rank in range(kind.ranks):
        child = os.fork()
        if child == 0:
            os.setpgid(0, children[0] if children else 0)
            os.dup2(log, 1), os.dup2(log, 2)
            os.environ.update(environment(kind, rank, port, trap))
            sys.argv = ["victim", *flags]
            importlib.import_module(f"{__package__}.victim").main()
        children.append(child)
    os.close(log)
    return children


def wait(children: list[int], until: float) -> bool | None:
    """True once all have ended well, False where one has not (the rest are killed soon), None at `until`."""
    left, well = list(children), True
    while left:
        for child in list(left):
            try:
                ended, status = os.waitpid(child, os.WNOHANG)
            except ChildProcessError:  # waited for before
                ended, status = child, 0
            if ended:
                left.remove(child)
                well = well and not status
                if status and left:
                    time.sleep(1)  # the others see it, or not
                    kill(children)
        if time.monotonic() > until:
            return None
        time.sleep(0.02)
    return well


def kill(children: list[int]) -> None:
    for child in children:
        try:
            os.killpg(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def attempt(kind: Kind, out: Path, moment: str, rng: random.Random) -> bool:
    """Run the command until it ends or dies; True where it was killed."""
    n = rng.randint(1, max(1, kind.counts[moment] // 6))
    trap = f"{moment}:{n}:{rng.randrange(kind.ranks)}"
    children = start(kind, out, ":0:0" if moment == ANY else trap)
    limit = time.monotonic() + (rng.uniform(0.1, 1) * kind.seconds if moment == ANY else 300)
    well = wait(children, limit)
    if well is None:
        kill(children)
        wait(children, time.monotonic() + 60)
    assert well is not None or moment == ANY, f"it hangs; see {out.with_suffix('.log')}"
    time.sleep(1 if kind.launched else 0)  # what the launcher started ends with it
    return not well


def outcome(out: Path) -> dict:
    """What a search has found, and what MLflow has of it, without what may differ."""
    import torch
    from safetensors.torch import load_file

    from lth_scale import Ticket

    ticket = Ticket.load(out / "ticket.safetensors")
    tables = {name: json.loads((out / name).read_text()) for name in ("results.json", "controls.json")}
    for row in [row for table in tables.values() for row in table]:
        for name in VARIABLE:
            del row[name]
    theta = load_file(out / "theta.safetensors")
    store = sqlite3.connect(out.parent / "mlflow.db")
    value = "case when m.key in ('seconds', 'peak_memory') or m.key like 'system/%' then 0 else m.value end"
    query = "select {} from {} m join runs r using (run_uuid) where r.lifecycle_stage = 'active' order by 1, 2, 3, 4"
    names = {name: sorted(store.execute(query.format(what, name)).fetchall()) for name, what in (
        ("metrics", f"r.name, m.key, m.step, {value}"),
        ("params", "r.name, m.key, case when m.key = 'output_dir' then '' else m.value end, 0"))}  # fmt: skip
    runs = "select name, status, (select count(*) from runs) > 0 from runs where lifecycle_stage = 'active' order by 1"
    return {
        "ticket": {name: mask.tolist() for name, mask in ticket.masks.items()},
        "theta": {name: torch.Tensor.tolist(weight.double().sum()) for name, weight in theta.items()},
        "mlflow": [*names.values(), store.execute(runs).fetchall()],
        **tables,
    }


def new_home(base: Path, number: int) -> Path:
    """A place for a search, with a store of MLflow's that needs no migrations."""
    home = base / f"{number:03d}"
    home.mkdir()
    shutil.copy(base / "mlflow.db", home)
    return home / "out"


def baseline(kind: Kind, base: Path, number: int) -> None:
    """Run the command once without any kill: what all others must find."""
    out, counts = new_home(base, number), base / "counts.json"
    os.environ["CHAOS_COUNTS"] = str(counts)
    began = time.monotonic()
    wait(start(kind, out, ":0:0"), began + 600)
    kind.seconds = time.monotonic() - began
    del os.environ["CHAOS_COUNTS"]
    assert (out / "complete").is_file(), out.with_suffix(".log").read_text()
    noted = json.loads(counts.read_text())
    kind.expected, kind.counts = outcome(out), Counter(noted["seen"])
    if not kind.launched:
        for name in noted["modules"]:  # so that what is forked later finds them loaded
            try:
                importlib.import_module(name)
            except Exception:
                continue


def search(kind: Kind, out: Path, moments: list[str], rng: random.Random) -> list[Kill]:
    """One search, killed at each of the moments in turn as long as it is not done, and then let run to its end."""
    kills: list[Kill] = []
    for moment in moments:
        if not attempt(kind, out, moment, rng):
            break
        kills.append(Kill(kind.name, moment))
    else:
        attempt(kind, out, "none", rng)
    done = (out / "complete").is_file()
    same = done and outcome(out) == kind.expected
    for each in kills:
        each.resumed, each.identical = done, same
    if not same:
        print(f"not what it should be: {out}", flush=True)
    return kills


def table(kills: list[Kill]) -> str:
    lines = ["| search | killed | kills | resumed | identical |", "|---|---|--:|--:|--:|"]
    for key in dict.fromkeys((each.kind, each.moment) for each in kills):
        these = [each for each in kills if (each.kind, each.moment) == key]
        lines.append(f"| {key[0]} | {key[1]} | {len(these)} | {sum(each.resumed for each in these)} "
                     f"| {sum(each.identical for each in these)} |")  # fmt: skip
    lines.append(f"| all | | {len(kills)} | {sum(k.resumed for k in kills)} | {sum(k.identical for k in kills)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launched", type=int, default=0, metavar="N", help="of them under `accelerate launch`")
    given = parser.parse_args()
    rng, base = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="chaos-"))
    kinds = [Kind("one process", 1), Kind("2 gloo ranks", 2)]
    kinds += [Kind("accelerate launch, 2 ranks", 2, launched=True)] if given.launched else []
    subprocess.run(
        [sys.executable, "-c", "import sys; from lth_scale.tracking import connect; connect(sys.argv[1])",
         f"sqlite:///{base / 'mlflow.db'}"], check=True, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    kills: list[Kill] = []
    for number, kind in enumerate(kinds):
        baseline(kind, base, number)
        print(f"{kind.name}: {kind.seconds:.0f} s uninterrupted, {dict(kind.counts)}", flush=True)
    number = len(kinds)
    while len(kills) < given.kills:
        launched = sum(each.kind == kinds[-1].name for each in kills)
        kind = kinds[-1] if given.launched and launched < given.launched else kinds[number % 2]
        moments = rng.sample([*MOMENTS, ANY, ANY], min(6, given.kills - len(kills)))
        kills += search(kind, new_home(base, number), moments, rng)
        number += 1
        print(f"{len(kills)} kills, {number - len(kinds)} searches", flush=True)
    print(table(kills))
    if not all(each.identical for each in kills):
        sys.exit(1)
    shutil.rmtree(base)


if __name__ == "__main__":
    main()

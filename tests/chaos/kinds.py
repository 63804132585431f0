"""The commands that are killed: the flags of each, and what it writes."""

import hashlib
import json
import re
import shlex
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub_server import Hub

TRAINED = shlex.split(
    "--preset demo --max_steps 6 --save_steps 2 --logging_steps 1 --max_train_samples 256 "
    "--per_device_train_batch_size 8 --max_eval_samples 16"
)
SEARCHED = shlex.split("--task sst2 --target_sparsity 0.3 --rewind_step 1 --control random_mask")
GRID = """\
launcher: "{python} -m tests.chaos.victim"
flags:
  {{preset: demo, save_steps: 2, logging_steps: 1, max_train_samples: 256, max_eval_samples: 16,
  prune_rate: 0.2}}
tasks: {{sst2: {{max_steps: 6, per_device_train_batch_size: 8}}}}
seeds: [1, 2]
sparsities: [0.2]
"""
VARIABLE = re.compile(r"git_commit|seconds|peak_memory|(cpu_|samples_)?ms|(times|verdict)_.*|best")
PLANTED = {"notes.txt": "precious", ".notes.tmp": "precious too"}
REPOSITORY = "writer/out"


@dataclass
class Kind:
    """A command. Each run has a home of its own, with the output in `home / "out"`.

    processes: started at once. parts: attempts a run is long enough for, as completed work is kept.
    """

    name: str
    module: str
    processes: int = 1
    parts: int = 1
    ranks: bool = False
    launched: bool = False
    needs: "Kind | None" = None
    home: Path = Path()  # of the undisturbed run
    expected: dict = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)
    seconds: float = 0.0

    def flags(self, home: Path, index: int) -> list[str]:
        """The command line of a process."""
        raise NotImplementedError

    def prepare(self, home: Path) -> None:
        """Write what the command reads."""

    def outcome(self, home: Path) -> dict:
        """Return what the command wrote, without what may differ."""
        return {"mlflow": tracked(home), "files": names(home), **contents(home / "out")}

    @property
    def source(self) -> Path:
        """The output of the command that this one needs."""
        assert self.needs is not None
        return self.needs.home / "out"


class Search(Kind):
    """A search with a control, of one process or more."""

    def flags(self, home: Path, index: int) -> list[str]:
        return [*SEARCHED, *TRAINED, "--output_dir", str(home / "out")]


class Transfer(Kind):
    """A transfer with two seeds, which keeps the network of the first."""

    def flags(self, home: Path, index: int) -> list[str]:
        flags = shlex.split("--task sst2 --seeds 1 2 --keep_network --ticket")
        return [*flags, str(self.source), *TRAINED, "--output_dir", str(home / "out")]


class Study(Kind):
    """Two shares of a study at once, each a search."""

    def prepare(self, home: Path) -> None:
        (home / "grid.yaml").write_text(GRID.format(python=sys.executable))

    def flags(self, home: Path, index: int) -> list[str]:
        share = ["--index", str(index), "--of", "2"]
        return [str(home / "grid.yaml"), "--output_dir", str(home / "out"), *share]


class Report(Kind):
    """The report of a study."""

    def prepare(self, home: Path) -> None:
        shutil.copytree(self.source, home / "out")
        shutil.copy(self.source.parent / "mlflow.db", home)

    def flags(self, home: Path, index: int) -> list[str]:
        return [str(home / "out"), "--save", str(home / "numbers.json")]


@dataclass
class Export(Kind):
    """A search's network in a format."""

    format: str = "csr"

    def flags(self, home: Path, index: int) -> list[str]:
        return [str(self.source), "--format", self.format, "--output_dir", str(home / "out")]


class Speed(Kind):
    """A speed check of dense torch and sparse CSR at the smallest shape."""

    def flags(self, home: Path, index: int) -> list[str]:
        flags = shlex.split("--backends csr --batch_size 1 --sequence_length 8 --repeats 4")
        flags += ["--max_eval_samples", "4"]
        return [str(self.source), *flags, "--output_dir", str(home / "out")]

    def outcome(self, home: Path) -> dict:
        metrics, *rest = tracked(home)
        once = sorted({*metrics})  # what was measured before a kill was measured
        table = json.loads((home / "out/speed.json").read_text())
        return {"mlflow": [once, *rest], "files": names(home), "table": scrubbed(table, home)}


@dataclass
class Push(Kind):
    """A push of a search to a local Hub over HTTP."""

    hub: Hub = field(default_factory=Hub)

    def prepare(self, home: Path) -> None:
        self.hub.repos.clear()
        self.hub.large.clear()
        shutil.copytree(self.source, home / "out")

    def flags(self, home: Path, index: int) -> list[str]:
        return ["push", str(home / "out"), "--hub_model_id", REPOSITORY]

    def outcome(self, home: Path) -> dict:
        commits = self.hub.repos[REPOSITORY].commits
        uploaded = [
            {name: digest(content) for name, content in commit.items()} for commit in commits
        ]
        return {"files": names(home), "commits": uploaded}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def own(home: Path) -> Iterator[Path]:
    """Yield the files below a home that are neither planted nor logs."""
    for path in sorted(home.rglob("*")):
        if path.is_file() and path.name not in PLANTED and path.suffix != ".log":
            yield path


def names(home: Path) -> list[str]:
    """Return the names of all files, including unfinished ones."""
    return [str(path.relative_to(home)) for path in own(home)]


def contents(directory: Path) -> dict:
    """Return digests of tensors and pages, and tables without times; no journals."""
    found: dict = {}
    for path in own(directory):
        name = str(path.relative_to(directory))
        if path.suffix in (".safetensors", ".png", ".html", ".md"):
            found[name] = digest(path.read_bytes().replace(str(directory.parent).encode(), b"HOME"))
        if path.suffix == ".json" and path.name != "mlflow.json":
            found[name] = scrubbed(json.loads(path.read_text()), directory.parent)
    return found


def scrubbed(value, home: Path):
    """Return a JSON value without times and the commit, with a fixed name for the home."""
    if isinstance(value, dict):
        return {
            key: scrubbed(each, home) for key, each in value.items() if not VARIABLE.fullmatch(key)
        }
    if isinstance(value, list):
        return [scrubbed(each, home) for each in value]
    return value.replace(str(home), "HOME") if isinstance(value, str) else value


def tracked(home: Path) -> list:
    """Return what MLflow has of every run: metrics except times, parameters, tags, artifacts."""
    store = sqlite3.connect(home / "mlflow.db")
    measured = " or ".join(
        f"m.key like '{each}'"
        for each in ("seconds", "peak_memory", "system/%", "%ms", "%/times_%")
    )
    tables = {
        "metrics": f"m.key, m.step, case when {measured} then 0 else m.value end",
        "params": f"m.key, replace(m.value, '{home}', 'HOME'), 0",
        "tags": "m.key, replace(m.value, r.run_uuid, 'RUN'), 0",
    }
    kept = (
        "from {} m join runs r using (run_uuid) where r.lifecycle_stage = 'active' and {} "
        "order by 1, 2, 3, 4"
    )
    which = "m.key in ('task', 'seed', 'round', 'control', 'curve', 'report')"
    found = [
        store.execute(
            f"select r.name, {what} {kept.format(name, which if name == 'tags' else 'true')}"
        ).fetchall()
        for name, what in tables.items()
    ]
    runs = (
        "select name, status, artifact_uri from runs where lifecycle_stage = 'active' order by name"
    )
    for name, status, uri in store.execute(runs):
        artifacts = [
            path.name
            for path in sorted(Path(uri.removeprefix("file://")).rglob("*"))
            if path.is_file()
        ]
        # MLflow was killed while it copied these.
        complete = [each for each in artifacts if not each.startswith(".artifact.uploading")]
        found.append([name, status, complete])
    return found

"""The journal and its delivery: the records of a search in a real store, without training."""

import json
import os
import shlex
import shutil
import sqlite3
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from mlflow import MlflowClient

from lth_scale.config import directories
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.science import summary
from lth_scale.tracking.mlflow import sender, settings
from lth_scale.tracking.mlflow.connection import connect
from lth_scale.tracking.mlflow.flush import flush
from lth_scale.tracking.stages import Stage

STEPS = 3  # of each round
SEARCH = "sst2 · seed 42 · embedded"


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An empty MLflow database, to be copied: creating one takes seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def messages(capfd) -> list[str]:
    """The lines about MLflow on stderr since the last call."""
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("MLflow:")]


def find_runs(store: str):
    """The client of a store, the experiment's id and the runs there."""
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("lth_scale").experiment_id
    return client, experiment, client.search_runs([experiment])


class Tracked:
    """The records of a search without training, in a directory `out` beside a store of its own."""

    def __init__(self, out: Path):
        self.out, self.file = out, out.parent / "mlflow.db"
        self.args = parse(["--task", "sst2", "--preset", "demo", "--output_dir", str(out)])

    @property
    def store(self) -> str:
        return settings.tracking_uri(self.out)

    def begin(self):
        """Start or continue the search; return its tracker."""
        from lth_scale.tracking.mlflow.tracker import MlflowTracker  # sets MLflow's variables

        settings.check_run(self.out)
        return MlflowTracker(self.args, self.out)

    def train(self, tracker, *rounds: int) -> None:
        """Train these rounds, finish, and send."""
        for k in rounds:
            tracker.start(Stage.round(k), k / 10, STEPS)
            for step in range(1, STEPS + 1):
                tracker.step(step, 1 / step)
                tracker.usage(step, {"system/host/cpu": 1.0})
            row = {"round": k, "sparsity": k / 10, "eval": {"accuracy": k / 3}}
            tracker.end(Stage.round(k), row)
        tracker.finish({"a.png": b"a"}, "table")
        flush(self.out)

    def go(self, *rounds: int) -> None:
        """Run a command from start to end."""
        self.train(self.begin(), *rounds)

    def check(self, *rounds: int) -> None:
        """Each round and step is there once, below one parent with the curve and the picture."""
        client, _, runs = find_runs(self.store)
        (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert sorted(run.info.run_name for run in runs) == [
            *(f"round {k:02d} · {10 * k} %" for k in rounds),
            SEARCH,
        ]
        for run in runs:
            assert run.info.status == "FINISHED"
            points = {
                name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics
            }
            steps = {name: [point.step for point in history] for name, history in points.items()}
            if run is parent:
                assert steps["eval/accuracy"] == [*rounds]
            else:
                assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
                assert steps["loss"] == steps["system/host/cpu"] == [*range(1, STEPS + 1)]
        artifacts = settings.database(self.store).parent / "mlartifacts" / parent.info.run_id
        assert (artifacts / "artifacts/figures/a.png").read_bytes() == b"a"
        files = client.list_artifacts(parent.info.run_id, "figures")
        assert [file.path for file in files] == ["figures/a.png"]


@pytest.fixture
def tracked(tmp_path, empty, monkeypatch):
    """Make a search in a directory of `tmp_path`, with an empty store beside it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sender, "PAUSE", 0.02)

    def make(name: str = "runs") -> Tracked:
        search = Tracked(tmp_path / name / "run")
        search.out.mkdir(parents=True)
        shutil.copy(empty, search.file)
        return search

    yield make
    sender.SENDERS.clear()


ODD = ["john's", "100%", "a%20b", "why?", "a?uri=true", "#1", "a & b", 'say "so"', "ü ☃", "x" * 250]


@pytest.mark.parametrize("name", ODD)
def test_a_store_at_any_path_gets_records_and_artifacts_and_nothing_else(
    name, tracked, capfd, tmp_path
):
    search = tracked(name)
    search.go(0, 1)
    search.check(0, 1)
    assert not messages(capfd)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    names = {path.name for path in search.file.parent.iterdir()}
    assert names == {"run", "mlflow.db", ".mlflow.db.lock", "mlartifacts"}
    assert settings.database(search.store) == search.file


def delete_child(client, experiment, runs):
    delete_all(client, experiment, [run for run in runs if "round 00" in run.info.run_name])


def delete_parent(client, experiment, runs):
    delete_all(client, experiment, [run for run in runs if run.info.run_name == SEARCH])


def delete_all(client, experiment, runs):
    for run in runs:
        client.delete_run(run.info.run_id)


def purge(client, experiment, runs):
    delete_all(client, experiment, runs)
    for run in runs:
        client._tracking_client.store._hard_delete_run(run.info.run_id)


def delete_experiment(client, experiment, runs):
    client.delete_experiment(experiment)


DELETIONS = [delete_child, delete_parent, delete_all, purge, delete_experiment]


@pytest.mark.parametrize("delete", DELETIONS)
def test_deleted_runs_are_sent_again_when_the_command_continues(delete, tracked, capfd):
    search = tracked()
    search.go(0, 1)
    delete(*find_runs(search.store))
    search.go(2)
    search.check(0, 1, 2)
    assert not messages(capfd)


@pytest.mark.parametrize("finished", [False, True])
def test_a_deleted_database_is_filled_again_from_the_journal(finished, tracked, empty):
    search = tracked()
    search.go(0, 1)
    search.file.unlink()
    if finished:
        flush(search.out)
    else:
        shutil.copy(empty, search.file)
        search.go(2)
    search.check(*((0, 1) if finished else (0, 1, 2)))


def test_runs_stay_in_a_renamed_experiment(tracked):
    search = tracked()
    search.go(0)
    client, experiment, _ = find_runs(search.store)
    client.rename_experiment(experiment, "tickets of 2020")
    search.go(1)
    assert len(client.search_runs([experiment])) == 3


INVALID_PROGRESS = [
    b'{"sto',
    b"",
    b"[]",
    b"null",
    b"7",
    b"\xff\0\1",
    b'{"mine": "data"}',
    b'{"store": "x", "sent": "x"}',
    b'{"store": "x", "sent": -1, "parent": [1]}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", [*INVALID_PROGRESS, "link", "directory", "pipe"])
def test_invalid_progress_is_quarantined_and_nothing_is_sent_twice(content, tracked, capfd):
    search = tracked()
    search.go(0)
    notes, kept = search.out / "mlflow.json", search.out / "mlflow.json.1"
    notes.unlink()
    (search.out / "elsewhere").write_bytes(b"precious")
    if isinstance(content, bytes):
        notes.write_bytes(content)
    else:
        {
            "link": lambda: notes.symlink_to("elsewhere"),
            "directory": notes.mkdir,
            "pipe": lambda: os.mkfifo(notes),
        }[content]()
    search.go(1)
    search.check(0, 1)
    (line,) = messages(capfd)
    assert str(kept) in line and (search.out / "elsewhere").read_bytes() == b"precious"
    assert not isinstance(content, bytes) or kept.read_bytes() == content


def test_wrong_progress_is_checked_against_the_store(tracked):
    search = tracked()
    search.go(0)
    notes = search.out / "mlflow.json"
    known = json.loads(notes.read_text())
    for changed in (
        {"parent": "0" * 32},
        {"round 00": "0" * 32},
        {"sent": known["sent"] + 99},
        {"sent": 7},
    ):
        notes.write_text(json.dumps(known | changed))
        search.go()
        search.check(0)


FOREIGN = [
    b"[]\n",
    b"1\n2\n",
    b"\xff\0\n",
    b"notes of mine\n",
    b"notes of mine",
    b'{"event": "click", "time": 1}\n',
    b'{"event": "reopen", "time": 1}\n',
    b'{"event": "parent", "time": 1}\n',
]


@pytest.mark.parametrize(
    "content", [*FOREIGN, "link", "hard link", "dangling link", "directory", "pipe"]
)
def test_a_journal_of_another_program_is_refused_and_not_changed(content, tracked):
    search = tracked()
    path, other = search.out / "mlflow.jsonl", search.out / "other"
    other.write_bytes(b"")
    makers = {
        "link": lambda: path.symlink_to(other),
        "hard link": lambda: path.hardlink_to(other),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "directory": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }
    makers[content]() if isinstance(content, str) else path.write_bytes(content)
    with pytest.raises(BadInput, match=r"mlflow\.jsonl: .*move it away") as refused:
        search.go(0)
    assert "\n" not in str(refused.value) and other.read_bytes() == b""
    assert not (search.out / "nowhere").exists()
    assert isinstance(content, str) or path.read_bytes() == content


@pytest.mark.parametrize("torn", [b"", b'{"ev', b'{"event": "parent", "ti'])
def test_a_journal_whose_first_line_is_torn_starts_over(torn, tracked):
    search = tracked()
    (search.out / "mlflow.jsonl").write_bytes(torn)
    search.go(0)
    search.check(0)


def test_damaged_and_rejected_lines_are_skipped_and_all_others_are_sent(tracked, empty, capfd):
    search = tracked()
    search.go(0)
    path = search.out / "mlflow.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    point = {"time": 1, "stage": "round 00", "step": 9}
    refused = {"event": "usage", **point, "metrics": {"b@d!": 1.0}}
    lines[4:4] = [
        b"[1]\n",
        b"7\n",
        b"\xff\n",
        b'{"event": "start", "time": "1"}\n',
        b'{"event": "zap", "time": 1}\n',
        json.dumps(refused).encode() + b"\n",
    ]
    path.write_bytes(b"".join(lines))
    path.with_suffix(".json").unlink()
    shutil.copy(empty, search.file)
    search.go(1)
    search.check(0, 1)
    first, second = messages(capfd)
    assert "is skipped" in first and "damaged" in first
    assert "is skipped" in second and "b@d!" in second
    assert path.read_bytes().startswith(b"".join(lines))


def test_a_replay_asks_once_per_metric_and_sends_a_thousand_points_per_request(
    tracked, monkeypatch
):
    search = tracked()
    tags = {"task": "sst2"}
    records = [
        {"event": "parent", "time": 1, "key": "ab", "name": "a", "tags": tags, "params": {}},
        {"event": "start", "time": 1, "key": "ab", "stage": "round 00", "name": "b", "tags": tags},
    ]
    for step in range(3000):
        point = {"time": 1, "stage": "round 00", "step": step}
        records.append({"event": "loss", **point, "loss": 1.0})
        records.append({"event": "usage", **point, "metrics": {"cpu": 1.0}})
    path = search.out / "mlflow.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    calls = {"get_metric_history": 0, "log_batch": 0}

    def counted(name):
        inner = getattr(MlflowClient, name)

        def call(self, *given, **named):
            calls[name] += 1
            return inner(self, *given, **named)

        monkeypatch.setattr(MlflowClient, name, call)

    [counted(name) for name in calls]
    for history, batches in ((0, 7), (2, 0)):
        calls.update(dict.fromkeys(calls, 0))
        flush(search.out)
        assert calls == {"get_metric_history": history, "log_batch": batches}
        path.with_suffix(".json").unlink()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("my diary\n" * 20),
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("no/where"),
        lambda path: path.symlink_to("mlflow.db"),
    ],
    ids=["text", "pipe", "directory", "dangling", "loop"],
)
def test_a_file_that_is_not_a_database_is_refused_in_one_line(make, tracked):
    search = tracked()
    search.file.unlink()
    make(search.file)
    with pytest.raises(
        BadInput, match=r"mlflow\.db: .*MLFLOW_TRACKING_URI.*--report_to none$"
    ) as refused:
        search.go(0)
    assert "\n" not in str(refused.value)


def test_the_database_of_another_program_is_refused_and_not_changed(tracked):
    search = tracked()
    search.file.unlink()
    for script in ("CREATE TABLE songs (title)", "CREATE TABLE experiments (title)"):
        with sqlite3.connect(search.file) as other:
            other.execute(script)
        before = search.file.read_bytes()
        with pytest.raises(BadInput, match="of another program"):
            search.go(0)
        with pytest.raises(ValueError, match="of another program"):
            connect(search.store)
        assert search.file.read_bytes() == before


@pytest.mark.parametrize(
    "given",
    ["http://", "http://host:port", "sqlite:////proc/no/x.db", f"sqlite:////{'x/' * 300}x.db"],
)
def test_an_impossible_store_is_refused_in_one_line(given, tracked, monkeypatch):
    search = tracked()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    with pytest.raises(BadInput, match=r"^MLFLOW_TRACKING_URI .*--report_to none$"):
        search.go(0)


def test_the_store_is_inside_a_directory_whose_parent_is_read_only_and_stays_there(
    tracked, monkeypatch, capfd
):
    search, check = tracked(), directories.check_writable
    search.file.unlink()

    def closed(directory):
        if directory == search.out.parent:
            raise PermissionError(13, "Permission denied")
        check(directory)

    with monkeypatch.context() as patched:
        patched.setattr(directories, "check_writable", closed)
        search.go(0)
        (line,) = messages(capfd)
        assert str(search.out / "mlflow.db") in line
    search = Tracked(search.out)
    search.go(1)
    search.check(0, 1)
    assert search.store == settings.address(search.out / "mlflow.db") and not search.file.exists()
    assert not messages(capfd)


class Wrong(BaseHTTPRequestHandler):
    """A server that is not MLflow or denies access: it answers with the status in the path."""

    def do_GET(self):
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()
        self.wfile.write(b"<html></html>")

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def wrong():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Wrong)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"me:pl4nted@127.0.0.1:{server.server_port}"
    server.shutdown()


REMEDIES = {
    "http://{}/401": "MLFLOW_TRACKING_TOKEN",
    "http://{}/403": "MLFLOW_TRACKING_TOKEN",
    "http://{}/404": "correct MLFLOW_TRACKING_URI",
    "http://{}/200": "correct MLFLOW_TRACKING_URI",
    "http://{}/302": "correct MLFLOW_TRACKING_URI",
    "https://{}": "correct MLFLOW_TRACKING_URI",
    "mssql+pyodbc://{}/x": "install that package",
}


@pytest.mark.parametrize("address", REMEDIES)
def test_a_permanent_failure_is_reported_once_with_a_remedy_and_not_waited_for(
    address, wrong, tracked, monkeypatch, capfd
):
    search, home = tracked(), os.environ.get("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(wrong))
    began = time.monotonic()
    search.go(0)
    flush(search.out)  # the same command again
    assert time.monotonic() - began < sender.PATIENCE / 2
    first, second = messages(capfd)
    assert first == second and REMEDIES[address] in first and "pl4nted" not in first
    monkeypatch.setenv("MLFLOW_TRACKING_URI", home)
    flush(search.out)
    search.check(0)


def test_a_database_of_another_version_of_mlflow_is_not_waited_for(tracked, capfd):
    search = tracked()
    with sqlite3.connect(search.file) as database:
        database.execute("UPDATE alembic_version SET version_num = '0'")
    before = time.monotonic()
    search.go(0)
    assert time.monotonic() - before < sender.PATIENCE / 2
    (line,) = messages(capfd)
    assert f"mlflow db upgrade {search.store}" in line


@pytest.mark.parametrize("delete", [delete_all, delete_experiment, "the database"])
def test_runs_deleted_during_the_command_are_sent_again(delete, tracked, empty, capfd):
    search = tracked()
    tracker = search.begin()
    while not tracker.sender.is_sent():
        time.sleep(0.01)
    if delete == "the database":
        search.file.unlink()
        shutil.copy(empty, search.file)
    else:
        delete(*find_runs(search.store))
    search.train(tracker, 0)
    search.check(0)
    assert not messages(capfd)


def test_a_read_only_database_is_reported_once_without_a_traceback(tracked, monkeypatch, capfd):
    search = tracked()
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", f"sqlite+pysqlite:///file:{search.file}?mode=ro&uri=true"
    )
    search.go(0)
    (line,) = capfd.readouterr().err.splitlines()
    assert "writable for this user" in line


def test_the_command_that_serves_the_store_can_be_pasted_into_a_shell(tracked):
    search = tracked("john's 100% a?b")
    search.go(0)
    line = summary.how_to_open_mlflow(search.out / "mlflow.json")[0]
    assert shlex.split(line)[-2:] == ["--backend-store-uri", search.store]

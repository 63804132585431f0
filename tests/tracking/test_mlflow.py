"""What a user finds in a real MLflow store."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from mlflow import MlflowClient

from lth_scale import Ticket
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.tracking.mlflow import sender
from lth_scale.tracking.mlflow.journal import read
from lth_scale.tracking.mlflow.models import describe_ticket
from lth_scale.tracking.mlflow.sender import JournalSender
from lth_scale.tracking.mlflow.settings import SCHEMES
from lth_scale.tracking.stages import Stage

VARYING = ("seconds", "peak_memory")


def find_runs(store):
    """The client of a store, and the runs of its experiment."""
    client = MlflowClient(store)
    return client, client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])


def steps(client, run, metric):
    """The steps at which a run has a metric."""
    return [point.step for point in client.get_metric_history(run.info.run_id, metric)]


@pytest.fixture
def runs(search, tmp_path, monkeypatch):
    """A tracked search with a control: (client, parent, children by name, output directory)."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = search(report_to="mlflow", control="random_mask", logging_steps=1)
    client, found = find_runs(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in found if run is not parent}
    return client, parent, children, out


def test_a_parent_holds_the_arguments_the_curves_and_the_pictures(runs):
    client, parent, _, out = runs
    assert {"learning_rate": "0.01", "schedule": "linear"}.items() <= parent.data.params.items()
    assert {"task": "sst2", "control": "none", "seed": "42"}.items() <= parent.data.tags.items()
    assert steps(client, parent, "eval/accuracy") == [0, 1, 2, 3]
    assert steps(client, parent, "random_mask/accuracy") == [2, 3]
    trivial = json.loads((out / "results.json").read_text())[0]["trivial"]
    for predictor in ("constant", "chance"):
        metric = f"trivial/{predictor}/accuracy"
        assert parent.data.metrics[metric] == trivial[predictor]["accuracy"]
        assert steps(client, parent, metric) == [0, 1, 2, 3]  # a line beside the curve
    pictures = client.list_artifacts(parent.info.run_id, "figures")
    assert [picture.path for picture in pictures] == [
        "figures/score_against_sparsity.png",
        "figures/sparsity_by_layer.png",
    ]
    local = client.download_artifacts(parent.info.run_id, pictures[0].path)
    with open(local, "rb") as file:
        assert file.read() == (out / pictures[0].path).read_bytes()
    assert "| round | sparsity |" in parent.data.tags["mlflow.note.content"]
    assert parent.info.status == "FINISHED"


def test_each_round_is_a_child_with_its_metrics_and_its_loss(runs):
    client, parent, children, out = runs
    assert sorted(children) == [
        "random_mask 02 · 20 %",
        "random_mask 03 · 30 %",
        "round 00 · 0 %",
        "round 01 · 10.01 %",
        "round 02 · 20 %",
        "round 03 · 30 %",
    ]
    row = json.loads((out / "rounds/02/metrics.json").read_text())
    child = children["round 02 · 20 %"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.data.tags["round"], child.data.tags["control"]) == ("2", "none")
    expected = {name: row[name] for name in ("pruned", "threshold")}
    expected["eval/accuracy"] = row["eval"]["accuracy"]
    assert expected.items() <= child.data.metrics.items()
    assert steps(client, child, "loss") == [1, 2, 3, 4]


def test_continuing_reopens_the_runs_and_repeats_no_step(search, tmp_path, monkeypatch):
    from lth_scale.training import loop

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    evaluate, calls = loop.evaluate, []

    def stop_in_round_two(net, *more):
        calls.append(net)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(net, *more)

    monkeypatch.setattr(loop, "evaluate", stop_in_round_two)
    with pytest.raises(KeyboardInterrupt):
        search(report_to="mlflow", logging_steps=1)
    search(report_to="mlflow", logging_steps=1)
    client, found = find_runs(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert len(found) == 1 + 4
    for run in found:
        for name in ("loss", "eval/accuracy"):
            logged = steps(client, run, name)
            assert len(logged) == len({*logged}), (run.info.run_name, name)


def test_report_to_none_writes_no_store(search, tmp_path):
    search(report_to="none")
    assert not (tmp_path / "mlflow.db").exists()


def test_each_seed_of_a_transfer_is_a_run_that_names_its_ticket(
    search, transfer, tmp_path, monkeypatch
):
    found = search(output_dir=tmp_path / "found", target_sparsity=0.1, max_steps=1)
    flags = dict(
        ticket=found / "rounds/01/ticket.safetensors",
        control="reinit",
        report_to="mlflow",
        max_steps=1,
    )
    with monkeypatch.context() as away:
        away.setattr(sender, "PATIENCE", 0.1)
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        transfer(1, **flags)
    transfer(1, 2, **flags)  # the first seed's records wait, the second's are new
    _, runs = find_runs(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parents = {
        run.data.tags["seed"]: run for run in runs if "mlflow.parentRunId" not in run.data.tags
    }
    assert set(parents) == {"1", "2"}
    for seed, run in parents.items():
        parts = (f"sst2 · seed {seed} · 10.01 % · reinit", "from found-01", "tiny_bert0")
        assert run.info.run_name == " · ".join(parts) and run.info.status == "FINISHED"
        assert run.data.tags["curve"].startswith("reinit · sst2 · tiny_bert0 ")
        assert "| seed | sparsity |" in run.data.tags["mlflow.note.content"]
        assert run.data.tags["control"] == "reinit" and "eval/accuracy" in run.data.metrics
        (child,) = [
            each for each in runs if each.data.tags.get("mlflow.parentRunId") == run.info.run_id
        ]
        assert child.info.run_name == f"seed 0{seed} · 10.01 %"  # 410 of 4,096 weights


def test_processes_that_create_a_store_together_share_one_experiment(tmp_path):
    code = f"from lth_scale.tracking.mlflow.connection import connect; print(connect('sqlite:///{tmp_path}/new/mlflow.db')[1])"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = [process.communicate(timeout=120)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0] and len(set(found)) == 1


def contents(store, out):
    """What a store holds of the search in `out`, except times, sorted by run name."""
    client, runs = find_runs(store)
    (parent,) = [run for run in runs if run.data.params.get("output_dir") == str(out)]
    found = []
    for run in runs:
        if run is not parent and run.data.tags.get("mlflow.parentRunId") != parent.info.run_id:
            continue
        names = sorted(name for name in run.data.metrics if name not in VARYING)
        points = {name: client.get_metric_history(run.info.run_id, name) for name in names}
        tags = {
            name: run.data.tags.get(name)
            for name in ("task", "seed", "control", "round", "base_model")
        }
        files = [
            file.path
            for folder in ("", "figures")
            for file in client.list_artifacts(run.info.run_id, folder)
        ]
        params = {name: value for name, value in run.data.params.items() if name != "output_dir"}
        metrics = {
            name: [
                (point.step, name.startswith("system/") or point.value) for point in points[name]
            ]
            for name in names
        }
        data = [each.dataset.name for each in run.inputs.dataset_inputs]
        models = [
            client.get_logged_model(each.model_id)
            for each in getattr(run.outputs, "model_outputs", ())
        ]
        models = [(model.name, model.status, len(model.metrics)) for model in models]
        found.append(
            (run.info.run_name, run.info.status, params, metrics, tags, files, sorted(data), models)
        )
    return sorted(found, key=lambda run: run[0])


@pytest.fixture(scope="module")
def server(mlflow_server, tmp_path_factory):
    directory = tmp_path_factory.mktemp("server")
    return mlflow_server(directory, f"sqlite:///{directory}/server.db")


@pytest.fixture
def impatient(monkeypatch, server):
    """Flags of searches that report to the server and wait for it only briefly."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("//", "//me:pl4nted@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr(sender, "PATIENCE", 1.0)
    return {"report_to": "mlflow", "target_sparsity": 0.2, "logging_steps": 1}


def test_a_server_that_is_down_gets_everything_once_it_is_up_and_the_command_is_run_again(
    search, server, impatient, tmp_path, capfd, monkeypatch
):
    if server.process:
        server.signal(signal.SIGKILL)
    out = search(**impatient)
    printed = capfd.readouterr()
    down, waiting = [line for line in printed.err.splitlines() if line.startswith("MLflow:")]
    assert str(out / "mlflow.jsonl") in down and f"{server.url} accepts no records" in down
    assert "records are waiting in" in waiting and "run the same command again" in waiting
    assert (out / "ticket.safetensors").is_file() and not (out / "mlflow.json").exists()
    server.start()
    monkeypatch.setattr(sender, "PATIENCE", 20.0)
    assert search(**impatient) == out
    undisturbed = search(**impatient, output_dir=tmp_path / "undisturbed")
    found = contents(server.url, out)
    assert found == contents(server.url, undisturbed) and len(found) == 1 + 3
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"pl4nted" not in written
    assert "pl4nted" not in printed.err + printed.out + capfd.readouterr().err


@pytest.mark.parametrize("ending", ["answers late", "is killed"])
def test_a_server_that_hangs_does_not_hold_up_training_and_gets_each_record_once(
    ending, search, server, impatient, tmp_path, monkeypatch
):
    from lth_scale.training import loop

    evaluate, calls = loop.evaluate, []

    def hang_in_round_one(net, *more):
        calls.append(net)
        if len(calls) == 2:
            server.signal(signal.SIGSTOP)
        return evaluate(net, *more)

    if not server.process:
        server.start()
    undisturbed = search(**impatient, output_dir=tmp_path / "undisturbed", max_steps=5)
    monkeypatch.setattr(sender, "PAUSE", 0.05)
    monkeypatch.setattr(loop, "evaluate", hang_in_round_one)
    # Long enough for a request to time out and be sent again.
    monkeypatch.setattr(sender, "PATIENCE", 4.0)
    out = search(**impatient, max_steps=5)
    assert len(calls) == 3 and (out / "complete").is_file()
    if ending == "is killed":
        server.signal(signal.SIGKILL)
        server.start()
    else:
        server.signal(signal.SIGCONT)
    monkeypatch.setattr(sender, "PATIENCE", 20.0)
    search(**impatient, max_steps=5)
    assert contents(server.url, out) == contents(server.url, undisturbed)


LIVES = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import datasets, torch
from mlflow import MlflowClient
from lth_scale.config.resolution import parse
from lth_scale.pruning.ticket import Ticket
from lth_scale.tracking.mlflow import sender
from lth_scale.tracking.mlflow.flush import flush
from lth_scale.tracking.mlflow.tracker import MlflowTracker
from lth_scale.tracking.stages import Stage

sender.PAUSE = 0.05
import mlflow.store.tracking.sqlalchemy_workspace_store

def die_after(write):
    def call(*args, **values):
        write(*args, **values)
        os.kill(os.getpid(), signal.SIGKILL)
    return call

def live(out, mortal, resumed):
    # The events of a small search, in a process that is killed after its first write and before
    # its progress is saved.
    if mortal:
        params = MlflowClient.log_batch  # the same params are written again
        for name in ("create_experiment", "create_run", "log_batch", "delete_run", "log_inputs",
                     "log_outputs", "create_logged_model", "finalize_logged_model"):
            setattr(MlflowClient, name, die_after(getattr(MlflowClient, name)))
        metrics = MlflowClient.log_batch
        MlflowClient.log_batch = lambda *args, **values: (
            (metrics if "metrics" in values else params)(*args, **values)
        )
    args = parse(["--task", "sst2", "--preset", "demo", "--output_dir", str(out)])
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]]})
    tracker = MlflowTracker(args, out, SimpleNamespace(train=rows, validation=rows, more={}))
    for k in (0, 1):
        tracker.start(Stage.round(k), k / 10, 3, resumed or (mortal and k == 0))
        for step in (1, 2, 3):
            tracker.step(step, 1 / (k + step))
        tracker.end(Stage.round(k), {"round": k, "sparsity": k / 10, "eval": {"accuracy": k / 3}})
    tracker.finish({"a.png": b"a"}, "table")
    flush(out)

def in_a_process(*given):
    child = os.fork()
    if child == 0:
        live(*given)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

killed, undisturbed = map(Path, sys.argv[1:])
for out in (killed, undisturbed):
    out.mkdir(parents=True)
    ticket = Ticket({"a": torch.ones(2, 2, dtype=torch.bool)}, task="sst2")
    ticket.save(out / "rounds/01/ticket.safetensors")
assert in_a_process(undisturbed, False, False) == 0
deaths = 0
while deaths < 40 and in_a_process(killed, True, deaths not in (0, 7)) == -signal.SIGKILL:
    deaths += 1  # in the 8th life, round 1 starts over
print(deaths)
"""


def test_a_process_killed_after_any_write_and_started_again_records_everything_once(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    outs = [tmp_path / name / "out" for name in ("killed", "undisturbed")]
    done = subprocess.run(
        [sys.executable, "-c", LIVES, *map(str, outs)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and 16 <= int(done.stdout) < 40, done
    killed, undisturbed = (contents(f"sqlite:///{out.parent}/mlflow.db", out) for out in outs)
    assert killed == undisturbed and [run[0] for run in killed[:2]] == [
        "round 00 · 0 %",
        "round 01 · 10 %",
    ]
    assert killed[1][6:] == (["sst2 train", "sst2 validation"], [("sst2-seed42-0pct", "READY", 3)])


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A function that makes a tracker whose store is down, and one that reads its journal."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    out = tmp_path / "out"
    out.mkdir()
    args = parse(["--task", "sst2", "--preset", "demo", "--output_dir", str(out)])

    def make():
        from lth_scale.tracking.mlflow.tracker import MlflowTracker

        return MlflowTracker(args, out)

    yield (
        make,
        lambda: [json.loads(line) for line in (out / "mlflow.jsonl").read_text().splitlines()],
    )
    sender.SENDERS.pop(out / "mlflow.jsonl").stop()


def test_a_resumed_stage_writes_no_step_twice_and_a_restarted_one_writes_all(journal):
    make, lines = journal
    row = {"round": 0, "sparsity": 0.0, "eval": {"accuracy": 0.5}}
    for resumed, until in ((False, 5), (True, 7), (True, 9), (False, 4)):
        tracker = make()
        tracker.start(Stage.round(0), 0.0, 9, resumed)
        for step in range(4 if resumed else 1, until + 1):
            tracker.step(step, 1 / step)
        if until == 9:
            tracker.end(Stage.round(0), row)
    tracker.end(Stage.round(0), row)
    starts = [i for i, line in enumerate(lines()) if line["event"] == "start"]
    steps = [
        [line["step"] for line in part if line["event"] == "loss"]
        for part in (lines()[starts[0] : starts[1]], lines()[starts[1] :])
    ]
    assert len(starts) == 2 and steps == [[*range(1, 10)], [1, 2, 3, 4]]
    assert [line["curve"] for line in lines() if line["event"] == "end"] == [
        {"eval/accuracy": 0.5, "sparsity": 0},
        {},
    ]


def test_the_parameters_of_a_ticket_name_its_base_if_it_is_known(tmp_path):
    for base in ("a" * 64, ""):
        ticket = Ticket({"a": torch.ones(2, 2, dtype=torch.bool)}, base_model="x", base_sha256=base)
        ticket.save(tmp_path / "t.safetensors")
        assert describe_ticket(tmp_path / "t.safetensors", 1)["base_sha256"] == base


@pytest.mark.parametrize("torn", [b'{"a": 4', b'{"a": 4\n', b"\0\0\0\n"])
def test_a_torn_last_line_of_the_journal_is_cut_and_the_others_are_sent(torn, tmp_path):
    path, sent = tmp_path / "mlflow.jsonl", []

    def deliver(_, lines):
        for line in lines:
            sent.append(line.record["a"])
            yield line.end

    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + torn)
    journal_sender = sender.start(path, "http://me:pl4nted@host", deliver)
    journal_sender.append({"a": 3})
    sender.wait([journal_sender])
    sender.SENDERS.clear()
    assert sent == [1, 2, 3] and path.read_bytes() == b'{"a": 1}\n{"a": 2}\n{"a": 3}\n'
    progress = json.loads((tmp_path / "mlflow.json").read_text())
    assert progress == {"store": "http://host", "sent": path.stat().st_size}


def test_what_a_full_disk_rejects_is_written_with_the_next_record(tmp_path, monkeypatch):
    journal_sender = JournalSender(
        tmp_path / "mlflow.jsonl", "http://host", lambda _, lines: iter(())
    )
    write = os.write
    for some in (
        lambda file, text: write(file, text[:3]),
        lambda file, text: write(99999, b""),
        write,
    ):
        monkeypatch.setattr(os, "write", some)
        journal_sender.append({"a": 1})
    assert [line.record for line in read(tmp_path / "mlflow.jsonl")] == [
        {"a": 1}
    ] * 3 and journal_sender.buffer == b""


@pytest.mark.parametrize(
    "store", ["foo://me:pl4nted@host/x", "file:///tmp/x", "/tmp/x", "./mlruns", "htp://host"]
)
def test_an_unsupported_store_is_refused_before_anything_is_written(
    store, search, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(BadInput, match=r"^MLFLOW_TRACKING_URI .*--report_to none$") as refused:
        search(report_to="mlflow")
    assert "pl4nted" not in str(refused.value) and not (tmp_path / "out").exists()


def test_the_accepted_stores_are_those_that_mlflow_supports():
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry as known

    assert set(known._registry) - {"", "file", "databricks-uc", "uc"} == set(SCHEMES)


def test_waiting_records_of_a_finished_search_are_sent_without_torch(
    search, small, command, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(sender, "PATIENCE", 0.1)
    out = search(report_to="mlflow", max_steps=1, target_sparsity=0.1)
    (tmp_path / "torch.py").write_text("raise ImportError('torch is imported')")
    flags = small(report_to="mlflow", max_steps=1, target_sparsity=0.1)
    done = command("lth_scale.imp", *flags, MLFLOW_TRACKING_URI="", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0 and "mlflow ui" in done.stdout, done.stderr
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert [run[0] for run in contents(store, out)] == [
        "round 00 · 0 %",
        "round 01 · 10.01 %",
        contents(store, out)[2][0],
    ]
    assert command("lth_scale.imp", *flags, MLFLOW_TRACKING_URI="").returncode == 0

"""tracking.py: what a reviewer finds in a real MLflow store."""

import subprocess
import sys

import pytest
from mlflow import MlflowClient


@pytest.fixture
def runs(search, tmp_path, monkeypatch):
    """A search with a control, tracked beside its directory: (client, parent, children by name, output directory)."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = search(report_to="mlflow", control="random_mask", logging_steps=1)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in found if run is not parent}
    return client, parent, children, out


def test_a_parent_holds_the_arguments_the_curves_and_the_pictures(runs):
    client, parent, _, out = runs
    assert parent.data.params["learning_rate"] == "0.01" and parent.data.params["schedule"] == "linear"
    assert {"task": "sst2", "control": "none", "seed": "42"}.items() <= parent.data.tags.items()
    curve = client.get_metric_history(parent.info.run_id, "eval/accuracy")
    assert [point.step for point in curve] == [0, 1, 2, 3]
    assert [point.step for point in client.get_metric_history(parent.info.run_id, "random_mask/accuracy")] == [2, 3]
    pictures = client.list_artifacts(parent.info.run_id, "figures")
    assert [picture.path for picture in pictures] == [
        "figures/score_against_sparsity.png", "figures/sparsity_by_layer.png",
    ]  # fmt: skip
    local = client.download_artifacts(parent.info.run_id, pictures[0].path)
    with open(local, "rb") as file:
        assert file.read() == (out / pictures[0].path).read_bytes()
    assert "| round | sparsity |" in parent.data.tags["mlflow.note.content"]
    assert parent.info.status == "FINISHED"


def test_each_round_is_a_child_with_its_metrics_and_its_loss(runs):
    import json

    client, parent, children, out = runs
    assert sorted(children) == [
        "random_mask 02 · 19.99 %", "random_mask 03 · 30.01 %",
        "round 00 · 0 %", "round 01 · 9.995 %", "round 02 · 19.99 %", "round 03 · 30.01 %",
    ]  # fmt: skip
    row = json.loads((out / "rounds/02/metrics.json").read_text())
    child = children["round 02 · 19.99 %"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.data.tags["round"], child.data.tags["control"]) == ("2", "none")
    assert child.data.metrics["pruned"] == row["pruned"] and child.data.metrics["threshold"] == row["threshold"]
    assert child.data.metrics["eval/accuracy"] == row["eval"]["accuracy"]
    losses = client.get_metric_history(child.info.run_id, "loss")
    assert [point.step for point in losses] == [1, 2, 3, 4]


def test_going_on_reopens_the_runs_and_repeats_no_step(search, tmp_path, monkeypatch):
    from lth_scale import training

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    evaluate, calls = training.evaluate, []

    def stop_in_round_two(net):
        calls.append(net)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(net)

    monkeypatch.setattr(training, "evaluate", stop_in_round_two)
    with pytest.raises(KeyboardInterrupt):
        search(report_to="mlflow", logging_steps=1)
    search(report_to="mlflow", logging_steps=1)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    assert len(found) == 1 + 4
    for run in found:
        for name in ("loss", "eval/accuracy"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert len(steps) == len(set(steps)), (run.info.run_name, name)


def test_report_to_none_writes_no_store(search, tmp_path):
    search(report_to="none")
    assert not (tmp_path / "mlflow.db").exists()


def test_each_seed_of_a_transfer_is_a_run_that_says_where_its_ticket_comes_from(search, transfer, tmp_path):
    found = search(output_dir=tmp_path / "found", target_sparsity=0.1, max_steps=1)
    transfer(1, 2, ticket=found / "rounds/01/ticket.safetensors", control="reinit", report_to="mlflow", max_steps=1)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    parents = {run.data.tags["seed"]: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert set(parents) == {"1", "2"}
    for seed, run in parents.items():
        assert run.info.run_name.endswith(f"from found-01 · reinit · seed {seed}") and run.info.status == "FINISHED"
        assert run.data.tags["control"] == "reinit" and "eval/accuracy" in run.data.metrics
        (child,) = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == run.info.run_id]
        assert child.info.run_name == f"seed 0{seed} · 9.995 %"  # 435 of 4,352 weights


def test_processes_that_make_one_store_at_once_share_one_experiment(tmp_path):
    code = f"from lth_scale.tracking import connect; print(connect('sqlite:///{tmp_path}/new/mlflow.db')[1])"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = [process.communicate(timeout=120)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0] and len(set(found)) == 1


def test_a_password_in_the_stores_url_is_not_kept():
    from lth_scale.arguments import without_secrets

    assert without_secrets("https://me:secret@host:5000/a?b=@c") == "https://host:5000/a?b=@c"
    assert without_secrets("postgresql://me:s%40cret@host/db") == "postgresql://host/db"
    assert without_secrets("sqlite:////a/b@c/mlflow.db") == "sqlite:////a/b@c/mlflow.db"

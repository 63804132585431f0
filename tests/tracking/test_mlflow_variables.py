"""MLflow's environment variables: the experiment and tags of new and of resumed runs."""

import json

import pytest
from mlflow import MlflowClient

from lth_scale.config.errors import BadInput
from lth_scale.tracking.mlflow import connection, sender, settings
from lth_scale.tracking.mlflow.runs import log_report


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in ("EXPERIMENT_NAME", "EXPERIMENT_ID", "TAGS", "RUN_ID", "TRACKING_URI"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a JSON object"),
        ("team=nlp", "team=nlp"),
        ('["a"]', "not a JSON object"),
        ("null", "not a JSON object"),
        ("[" * 100_000, "(100,000 characters)"),
        ('{"seed": 1}', "'seed' is set by lth_scale on every run"),
        ('{"mlflow.runName": "x"}', "mlflow.runName"),
        ('{"a,b": "x"}', "'a,b' has a name that MLflow does not accept"),
        ('{"../a": "x"}', "'../a'"),
        ('{"": "x"}', "''"),
        (json.dumps({"a" * 251: "x"}), "has a name"),
        (json.dumps({"a": "x" * 8001}), "8,001 characters"),
    ],
)
def test_tags_that_mlflow_does_not_accept_are_refused_before_anything_is_written(
    text, words, search, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TAGS", text)
    with pytest.raises(BadInput, match=r"^MLFLOW_TAGS") as refused:
        search(report_to="mlflow")
    assert (
        words in str(refused.value)
        and not (tmp_path / "out").exists()
        and not (tmp_path / "mlflow.db").exists()
    )


@pytest.mark.parametrize(
    "flags", [["report", ".", "--delta", "1"], ["speed", "embedded"]], ids=lambda flags: flags[0]
)
def test_other_commands_refuse_them_too(flags, monkeypatch):
    from lth_scale import report, speed

    monkeypatch.setenv("MLFLOW_TAGS", "{")
    monkeypatch.setattr("sys.argv", flags)
    with pytest.raises(BadInput, match=r"^MLFLOW_TAGS {: not a JSON object"):
        {"report": report, "speed": speed}[flags[0]].COMMAND.parse()
    monkeypatch.setattr("sys.argv", [*flags, "--report_to", "none"])
    {"report": report, "speed": speed}[flags[0]].COMMAND.parse()


def test_tags_have_no_secrets(monkeypatch):
    text = {"release.candidate": "RC1", "a b/c:d": "ü"}
    values = {**text, "n": 3, "on": True, "url": "http://me:pl4nted@host/x"}
    monkeypatch.setenv("MLFLOW_TAGS", json.dumps(values))
    assert settings.tags() == {**text, "n": "3", "on": "True", "url": "http://host/x"}


def test_long_names_are_refused_and_a_run_id_is_reported_as_ignored(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123")
    settings.check_variables()
    assert [*caplog.messages] == [
        "MLFLOW_RUN_ID is ignored: each command creates its own MLflow runs"
    ]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "n" * 501)
    with pytest.raises(BadInput, match=r"^MLFLOW_EXPERIMENT_NAME n+… .501 characters.: longer"):
        settings.check_variables()


def runs_of(client, name):
    found = client.get_experiment_by_name(name)
    return client.search_runs([found.experiment_id]) if found else []


def test_a_search_follows_the_variables_and_continues_in_its_experiment(
    search, tmp_path, monkeypatch, capfd
):
    store, name = f"sqlite:///{tmp_path / 'mlflow.db'}", "Ana's tickets / 100 % “ü”"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    monkeypatch.setenv("MLFLOW_TAGS", '{"team": "nlp"}')
    flags = {"report_to": "mlflow", "max_steps": 1, "target_sparsity": 0.1}
    out = search(**flags)
    client = MlflowClient(store)
    runs = runs_of(client, name)
    assert len(runs) == 3 and {run.data.tags["team"] for run in runs} == {"nlp"}
    assert runs_of(client, "lth_scale") == []
    number = client.get_experiment_by_name(name).experiment_id
    assert f"#/experiments/{number}/runs" in capfd.readouterr().out
    client.create_experiment("theirs")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    theirs = client.get_experiment(connection.connect(store)[1])
    # An experiment of others keeps its description.
    assert theirs.name == "theirs" and "mlflow.note.content" not in theirs.tags

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    for path in ("complete", "rounds/01/complete"):
        (out / path).unlink()
    capfd.readouterr()
    search(**flags)
    said = capfd.readouterr()
    assert len(runs_of(client, name)) == 3 and runs_of(client, "another") == []
    assert (
        f"MLflow: the runs of {out}/mlflow.jsonl started in the experiment {name!r} and continue "
        "there" in said.err
    )
    assert f"#/experiments/{number}/runs" in said.out

    client.delete_experiment(number)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    assert connection.connect(store)[1] == number
    # MLflow reserves the name of a deleted experiment, so it is restored.
    assert client.get_experiment(number).lifecycle_stage == "active"

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    picture = tmp_path / "a #1.txt"
    picture.write_text("x")
    log_report(store, "study", [picture])
    (report,) = [run for run in runs_of(client, name) if run.data.tags.get("report")]
    assert report.data.tags["team"] == "nlp"

    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "999")
    with pytest.raises(Exception, match="999") as problem:
        connection.connect(store)
    assert "correct or unset MLFLOW_EXPERIMENT_ID" in sender.remedy(problem.value, store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "of the team")
    with pytest.raises(Exception, match="must be a valid integer") as problem:
        connection.connect(store)
    assert "integer; correct or unset MLFLOW_EXPERIMENT_ID" in sender.remedy(problem.value, store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "999")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    with pytest.raises(
        ValueError, match="MLFLOW_EXPERIMENT_ID 999 is not the id of the experiment"
    ) as problem:
        connection.connect(store)
    assert "correct or unset MLFLOW_EXPERIMENT_ID" in sender.remedy(problem.value, store)

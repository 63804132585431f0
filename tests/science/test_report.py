"""`lth_scale.report`: the page, the MLflow run and the saved file."""

import re

import evidence_page
import pytest
from markdown_it import MarkdownIt
from test_results import Plan

from lth_scale import report
from lth_scale.config import manifest


@pytest.fixture
def main(monkeypatch, capsys):
    """Run the command in this process, without a tracking server, and return its output."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def go(*flags):
        monkeypatch.setattr("sys.argv", ["report", *map(str, flags)])
        report.main()
        return capsys.readouterr().out

    return go


def test_the_report_is_one_run_in_the_mlflow_store_of_the_jobs(tmp_path, main):
    from mlflow import MlflowClient

    plan = Plan(tmp_path, tasks=["sst2"], seeds=(1,))
    plan.search("sst2", 1)
    out = main(plan.write(), "--report_to", "none")
    assert "MLflow" not in out and str(tmp_path / "report/report.html") in out
    assert "5 planned, 5 finished, 0 missing" in out
    store = f"sqlite:///{tmp_path / 'jobs/mlflow.db'}"
    for _ in range(2):
        assert f"logged to {store}" in main(tmp_path)
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    assert run.info.run_name == "report · small" and run.info.status == "FINISHED"
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert artifacts == {path.name for path in (tmp_path / "report").iterdir()} - {manifest.LISTING}


def test_names_and_notes_are_escaped_on_the_page_and_in_mlflow(tmp_path, main):
    from mlflow import MlflowClient

    plan = Plan(
        tmp_path, tasks=["sst2"], seeds=(1,), note="$x$ [a](b.png) ](c.png) <iframe src=d>\x1b[2J"
    )
    plan.plan |= {"name": "![n](e.png)\n# Mine", "model": "it's/</p><script>`|"}
    plan.search("sst2", 1)
    assert (
        "logged to" in main(plan.write())
        and "\x1b" not in (tmp_path / "report/report.md").read_text()
    )
    client = MlflowClient(f"sqlite:///{tmp_path / 'jobs/mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    note = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(run.data.tags["mlflow.note.content"])
    )
    page = (tmp_path / "report/report.html").read_text()
    for text in (note, page):
        assert (
            "<script" not in text
            and "<iframe" not in text
            and "<a " not in text.replace('<a href="#', "")
            and "\x1b" not in text
        )
        assert (
            "$x$ [a](b.png) ](c.png) &lt;iframe src=d&gt;�[2J" in text and text.count("<h1>") == 1
        )
    assert set(re.findall('src="([^"]*)"', note)) == {
        f"get-artifact?run_uuid={run.info.run_id}&amp;path={picture.name}"
        for picture in tmp_path.glob("report/*.png")
    }


def test_saved_numbers_fill_the_evidence_page(tmp_path, main):
    plan = Plan(tmp_path / "run", tasks=["sst2"], seeds=(1, 2))
    for seed in plan.seeds:
        plan.search("sst2", seed)
    main(plan.write(), "--report_to", "none", "--save", tmp_path / "facts/small.json")
    (tmp_path / "facts/page.in").write_text("dense {{ score('small', 'sst2', 0) }}")
    assert evidence_page.write(tmp_path / "facts") == tmp_path / "facts.md"
    assert (tmp_path / "facts.md").read_text() == "dense 91.9 ± 0.1 (n = 2)"


@pytest.fixture
def registered(tmp_path, main):
    """Run the report of a study of two tasks; return the client of its registry."""
    from mlflow import MlflowClient

    plan = Plan(tmp_path, tasks=["mrpc", "wnli"])
    for seed in plan.seeds:
        plan.search("mrpc", seed)
        plan.search("wnli", seed, missing=seed == 3)
    main(plan.write())
    return MlflowClient(f"sqlite:///{tmp_path / 'jobs/mlflow.db'}")


NAME = "bert-base-uncased-mrpc-ticket"


def test_the_ticket_of_the_highest_match_has_the_alias_and_its_interval(registered, tmp_path, main):
    (model,) = registered.search_registered_models()  # two seeds of wnli match nothing
    assert model.name == NAME and [*model.aliases] == ["matches"]
    version = registered.get_model_version_by_alias(NAME, "matches")
    text = re.sub(r"\\(.)", r"\1", version.description)
    assert text.startswith("matches at 60 %: difference −0.40, 90 % interval [−")
    assert "δ = 1, p " in text and ", Holm p " in text and "n = 3 pairs" in text
    assert text.endswith(
        "All: matches at 30 %, 50 %, 60 %; worse at 70 %; undecided at none; no verdict at none"
    )
    assert version.tags["study"] == "small" and version.tags["seed"] == "1"
    main(tmp_path, "--delta", 0.3)
    lower = registered.get_model_version_by_alias(NAME, "matches")
    assert "matches at 30 %" in lower.description and lower.version != version.version
    assert registered.get_model_version(NAME, version.version).description == (
        "no match in the last report"
    )


def test_the_alias_is_deleted_when_nothing_matches(registered, tmp_path, main):
    main(tmp_path, "--delta", 0)
    (model,) = registered.search_registered_models()
    assert not model.aliases
    (version,) = registered.search_model_versions(f"name = '{NAME}'")
    assert version.description == "no match in the last report" and "matches" not in version.tags


def test_the_alias_of_another_study_stays_when_nothing_matches(registered, tmp_path, main):
    number = registered.get_model_version_by_alias(NAME, "matches").version
    registered.set_model_version_tag(NAME, number, "study", "theirs")
    before = registered.get_model_version(NAME, number).description
    main(tmp_path, "--delta", "0")
    (model,) = registered.search_registered_models()
    assert {**model.aliases} == {"matches": number}
    assert registered.get_model_version(NAME, number).description == before


def test_aliases_by_rule_that_a_report_of_this_study_set_are_deleted(registered, tmp_path, main):
    number = registered.get_model_version_by_alias(NAME, "matches").version
    for alias in ("matches-strict", "matches-welch", "matches-mine", "matches-paired"):
        registered.set_registered_model_alias(NAME, alias, number)
        if alias != "matches-paired":  # which somebody else has set
            registered.set_model_version_tag(NAME, number, alias, "50 %; never fails")
    main(tmp_path)
    (model,) = registered.search_registered_models()
    assert {*model.aliases} == {"matches", "matches-mine", "matches-paired"}
    tags = registered.get_model_version(NAME, number).tags
    assert {tag for tag in tags if tag.startswith("matches")} == {"matches", "matches-mine"}


def test_aliases_by_rule_of_another_study_stay(registered, tmp_path, main):
    number = registered.get_model_version_by_alias(NAME, "matches").version
    source = registered.get_model_version(NAME, number).source
    other = registered.create_model_version(NAME, source + "/other", None).version
    registered.set_registered_model_alias(NAME, "matches-strict", other)
    for key, value in {"matches-strict": "50 %", "study": "another"}.items():
        registered.set_model_version_tag(NAME, other, key, value)
    main(tmp_path)
    (model,) = registered.search_registered_models()
    assert {*model.aliases} == {"matches", "matches-strict"}

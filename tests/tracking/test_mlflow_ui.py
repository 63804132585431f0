"""What a user sees of a finished study: a real MLflow server in a real, headless browser.

`UPDATE_DOCS=1 pytest tests/tracking/test_mlflow_ui.py` updates the pictures of docs/mlflow.md.
"""

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import yaml
from conftest import SIZES, write_jsonl
from mlflow import MlflowClient

from lth_scale import imp, report, transfer
from lth_scale.config import files
from lth_scale.config.arguments import Transfer
from lth_scale.config.command import as_argv
from lth_scale.config.resolution import parse
from lth_scale.science import plans, study_file, summary
from lth_scale.tracking.mlflow import sender

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser test needs playwright (the dev extra)"
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="the browser test needs Chromium (apt-get install chromium)"
)
SEEDS, CONTROLS, SPARSITIES = [1, 2, 3], ["random_mask", "reinit"], [0.3, 0.6, 0.9]
SLOW = 60_000  # milliseconds that a page may take on a busy machine
WORDS = (
    *("good", "fine", "great", "nice", "fresh", "bad", "poor", "awful", "stale", "dull"),
    *("the", "film", "was", "and", "its", "plot", "very", "so", "quite"),
)


def toy_data(directory: Path) -> Path:
    """Sentences of ten words, half of them good ones or bad ones; the label says which are more."""
    rows = []
    for i in range(600):
        picked = [WORDS[(i * 7919 + j * j * 31 + i * j * 13) % 10] for j in range(5)]
        filler = [WORDS[10 + (i * 31 + j * 17) % 9] for j in range(5)]
        text = " ".join(word for pair in zip(filler, picked, strict=True) for word in pair)
        rows.append(
            {
                "idx": i,
                "sentence": text,
                "label": int(sum(word in WORDS[:5] for word in picked) > 2),
            }
        )
    write_jsonl(directory / "train.jsonl", rows[:400])
    return write_jsonl(directory / "validation.jsonl", rows[400:]).parent


def set_scores(path: Path) -> None:
    """Set the scores of a search, which tie in a toy, so that its tickets of 30 and 60 % match."""
    rows = files.read_json(path)
    for row, loss in zip(rows, (0, 0.001, 0.002, 0.2), strict=True):
        seed = int(path.parent.name[-1])
        row["eval"]["accuracy"] = 0.9 - loss * seed
    files.write_json(path, rows)


@pytest.fixture(scope="module")
def study(tmp_path_factory, tokenizer):
    """A finished study of three seeds, two controls and three sparsities, with its report."""
    import torch
    from accelerate.state import AcceleratorState
    from transformers import BertConfig, BertForMaskedLM

    home = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    model = home / "toy-bert"
    toy_data(home / "data")
    sizes = {**SIZES, "hidden_size": 32, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(**sizes, vocab_size=len(tokenizer))).save_pretrained(model)
    tokenizer.save_pretrained(model)
    steps = 60 if os.environ.get("UPDATE_DOCS") else 20
    flags = {
        "model_name_or_path": "./toy-bert",
        "dataset_path": "data",
        "max_steps": steps,
        "max_seq_length": 24,
        "learning_rate": 0.01,
        "per_device_train_batch_size": 32,
        "prune_rate": 0.3,
        "logging_steps": 5,
    }
    plan = {
        "name": "toy",
        "flags": flags,
        "tasks": ["sst2"],
        "seeds": SEEDS,
        "sparsities": SPARSITIES,
        "controls": CONTROLS,
        "control_sparsities": SPARSITIES[1:],
    }
    (home / "toy.yaml").write_text(yaml.safe_dump(plan))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(home)  # so that the pictures show no path of this machine
        patch.setattr(sender, "PAUSE", 0.05)
        made = plans.build_plan(study_file.load_study(home / "toy.yaml", {}))
        files.write_json(home / "study.json", made.to_dict())
        for job in made.jobs.values():
            AcceleratorState._reset_state(reset_partial_state=True)
            kinds = {"imp": (imp, []), "transfer": (transfer, [Transfer])}
            command, kind = kinds[job.kind]
            command.run(parse(as_argv(job.below(home).flags), *kind))
        for path in home.glob("jobs/search-*/results.json"):
            set_scores(path)
        for _ in range(2):  # again, and nothing is there twice
            patch.setattr(sys, "argv", ["report", str(home)])
            report.main()
    return home


@pytest.fixture(scope="module")
def server(study, mlflow_server):
    """The URL of `mlflow server` for the study's store, started as a command suggests."""
    server = mlflow_server(study, f"sqlite:///{study}/jobs/mlflow.db")
    server.start()
    return server.url


@pytest.fixture(scope="module")
def browser():
    """A page of headless Chromium, with MLflow's assistant closed."""
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 880})
        keys = ("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "mlflow.assistant.panelOpen_v1")
        for key, value in zip(keys, ("true", "false"), strict=True):
            page.add_init_script(f"localStorage.setItem('{key}', '{value}')")
        page.set_default_timeout(SLOW)
        yield page
        chromium.close()


@pytest.fixture
def keep(browser, tmp_path):
    """Save a screenshot, in docs/images/ if UPDATE_DOCS is set."""

    def go(name: str) -> None:
        where = (
            Path(__file__).parents[2] / "docs/images" if os.environ.get("UPDATE_DOCS") else tmp_path
        )
        browser.screenshot(path=where / f"mlflow-{name}.png")

    return go


@pytest.fixture
def store(study):
    """A client of the study's store, and the experiment's id there."""
    client = MlflowClient(f"sqlite:///{study}/jobs/mlflow.db")
    return client, client.get_experiment_by_name("lth_scale").experiment_id


def run_named(store, name: str) -> str:
    """The address of a run's page, below the server's."""
    client, experiment = store
    (run,) = client.search_runs([experiment], f"attributes.run_name = '{name}'")
    return f"/#/experiments/{experiment}/runs/{run.info.run_id}"


def test_the_page_that_a_command_names_shows_curves_controls_and_seeds_at_once(
    browser, server, study, keep
):
    (notes,) = study.glob("jobs/search-sst2-seed1/mlflow.json")
    page = summary.how_to_open_mlflow(notes)[-1].split("/#/")[-1]
    browser.goto(f"{server}/#/{page}")
    chart = browser.locator("[data-testid='experiment-view-compare-runs-card']").filter(
        has_text="sst2 accuracy by"
    )
    chart.locator(".js-plotly-plot .scatterlayer .trace").nth(2).wait_for()
    for curve in ("IMP", *CONTROLS):
        chart.get_by_text(f"{curve} · sst2 · toy-bert").first.wait_for()
        browser.get_by_text(f"Group: {curve} · sst2").first.wait_for()
    for seed in SEEDS:
        browser.get_by_text(f"sst2 · seed {seed} · toy-bert", exact=True).wait_for()
        assert browser.get_by_text(f"sst2 · seed {seed} · 90 % · random_mask").count() == 1
    drawn = chart.locator(".js-plotly-plot").evaluate(
        "plot => plot.data.map(line => [line.uuid || '', [...line.x]])"
    )
    lines = {name.removeprefix("tag.curve.").split(" ")[0]: steps for name, steps in drawn if name}
    assert lines == {"IMP": [0, 30, 60, 90], "random_mask": [60, 90], "reinit": [60, 90]}
    browser.get_by_text("Each curve is a mean over seeds").wait_for()
    assert browser.get_by_text("round 01").count() == 0
    keep("curves")


def test_a_parents_page_shows_its_table_its_figure_and_its_data(browser, server, store, keep):
    browser.goto(
        server + run_named(store, "sst2 · seed 1 · toy-bert") + "?workflowType=machine_learning"
    )
    for text in ("sst2 train", "round 03 · 90 %", "Show more"):
        browser.get_by_text(text).first.wait_for()
    browser.get_by_text("Show more").click()
    assert browser.locator("table", has_text="pruned weights").locator("tr").count() == 1 + 4
    figure = browser.locator("img[src*='score_against_sparsity.png']")
    figure.scroll_into_view_if_needed()
    browser.wait_for_function("i => i.naturalWidth > 500", arg=figure.element_handle())
    keep("run")


def test_the_reports_page_shows_the_figure_of_the_study(browser, server, store, keep):
    browser.goto(server + run_named(store, "report · toy") + "?workflowType=machine_learning")
    browser.get_by_text("Show more").click()
    browser.get_by_text("Do the tickets match the full network?").first.wait_for()
    figure = browser.locator("img[src*='scores.png']")
    figure.scroll_into_view_if_needed()
    browser.wait_for_function("i => i.naturalWidth > 500", arg=figure.element_handle())
    keep("report")


def test_a_rounds_page_shows_what_its_node_used(browser, server, store):
    client, experiment = store
    parent = run_named(store, "sst2 · seed 1 · toy-bert").rpartition("/")[2]
    (child,) = client.search_runs(
        [experiment], f"tags.mlflow.parentRunId = '{parent}' AND tags.round = '3'"
    )
    run = f"{server}/#/experiments/{experiment}/runs/{child.info.run_id}"
    page = f"{run}/system-metrics?workflowType=machine_learning"
    browser.goto(page)
    browser.get_by_text(f"system/{socket.gethostname()}").first.wait_for()
    for name in ("cpu_utilization_percentage", "system_memory_usage_percentage"):
        browser.get_by_text(name).first.wait_for()


def test_each_ticket_is_a_model_and_the_one_that_matches_is_registered(
    browser, server, store, keep
):
    client, experiment = store
    names = {model.name for model in client.search_logged_models([experiment])}
    assert names == {f"sst2-seed{seed}-{percent}pct" for seed in SEEDS for percent in (30, 60, 90)}
    browser.goto(f"{server}/#/experiments/{experiment}/models?workflowType=machine_learning")
    browser.get_by_text("sst2-seed1-90pct").first.wait_for()
    (registered,) = client.search_registered_models()
    versions = client.search_model_versions(f"name = '{registered.name}'")
    assert registered.name == "toy-bert-sst2-ticket" and [*registered.aliases] == ["matches"]
    assert len({version.source for version in versions}) == len(versions)  # the report ran twice
    (best,) = [each for each in versions if each.version == registered.aliases["matches"]]
    assert "matches at 60 %: difference −0.40" in best.description and best.tags["seed"] == "1"
    browser.goto(f"{server}/#/models/{registered.name}?workflowType=machine_learning")
    browser.get_by_text("n = 3 pairs").first.wait_for()
    keep("registry")

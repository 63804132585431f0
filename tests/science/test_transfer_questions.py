"""Questions 2 and 3 of the paper's transfer section, on synthetic studies."""

import json
import math

import pytest
from test_results import Plan, tables

from lth_scale.science import report, results, saved
from lth_scale.science.paper import paper
from lth_scale.science.sections import starting_weights, transfer, transferability
from lth_scale.tasks.registry import CATEGORIES, TASKS

SOURCES = ["sst2", "mrpc", "wnli", "mlm"]
ROWS = {"sst2": 800, "mrpc": 400, "wnli": 100, "mlm": 5000}


def change_rows(directory, change):
    """Apply `change(row, task, job)` to every row of every job of a study."""
    jobs = {job["id"]: job for job in json.loads((directory / "study.json").read_text())["jobs"]}
    for path in directory.glob("jobs/*/results.json"):
        rows, job = json.loads(path.read_text()), path.parent.name
        for row in rows:
            change(row, jobs[job]["flags"].get("task", ""), job)
        path.write_text(json.dumps(rows))


@pytest.fixture
def plan(tmp_path):
    """Four tasks' tickets on one another at 70 %, with θ₀."""
    plan = Plan(tmp_path)
    for task in SOURCES:
        for seed in plan.seeds:
            plan.search(task, seed)
        for source in SOURCES:
            if source != task:
                plan.transfer(task, 0.7, source=source)
    return plan


@pytest.fixture
def rewound(plan):
    """Also with the weights of other searches, from mlm and mrpc to sst2 and wnli."""
    for task in ("sst2", "wnli"):
        for source in ("mlm", "mrpc"):
            for point in ("0.05", "none"):
                plan.transfer(task, 0.7, source=source, rewind=point)
    flags = {"task": "mlm", "seed": 1, "target_sparsity": 0.7, "rewind": "none"}
    plan.job("search-mlm-seed1-rewindnone", "imp", False, **flags)
    return plan


def test_every_question_on_transfer_has_one_table(rewound):
    sections = report.build_sections(results.load_results(rewound.write()), None)
    assert {len(section.tables) for section in sections if "transfer" in section.title} == {1}


def test_starting_weights_are_compared_with_theta_0_in_a_family_of_target_and_source(rewound):
    study = results.load_results(rewound.write())
    section = starting_weights.starting_weights(study, 0.7, 1.0)
    (short,), (verdicts,) = section.tables, section.details
    assert [row[:2] for row in verdicts.rows[:3]] == [["sst2", "mrpc"]] * 2 + [["sst2", "mlm"]]
    assert len(verdicts.rows) == 4 * 2 and len(short.rows) == 4
    by = {tuple(row[:3]): dict(zip(verdicts.header, row, strict=True)) for row in verdicts.rows}
    trained = by["sst2", "mlm", "standard pruning"]
    assert trained["difference"] == "−3.00" and trained["answer"] == "worse"
    assert by["sst2", "mlm", "5 %"]["answer"] == "matches"
    row = dict(zip(short.header, short.rows[1], strict=True))
    assert row["target"] == "sst2" and row["source"] == "mlm" and row["n"] == "3"
    assert row["θ₀"] == "88.0 ± 0.2" and row["standard pruning"] == "85.0 ± 0.1, worse"
    picture = section.pictures["starting_weights_70.png"][1]
    assert "70 %" in section.title and picture.png.startswith(b"\x89PNG")


def test_starting_weights_of_a_dead_reference_have_no_verdict(rewound):
    def die(row, task, job):
        row["constant_prediction"] = job == "none-mlm-on-sst2-0.7-0"

    change_rows(rewound.write(), die)
    study = results.load_results(rewound.directory)
    (table,) = starting_weights.starting_weights(study, 0.7, 1.0).details
    answer = table.header.index("answer")
    assert {row[answer] for row in table.rows if row[:2] == ["sst2", "mlm"]} == {
        "no verdict: the IMP ticket is dead (one prediction for all rows)"
    }
    assert "matches" in {row[answer] for row in table.rows if row[:2] == ["sst2", "mrpc"]}


def test_rewound_transfers_are_not_among_the_rewound_searches_of_a_task(rewound):
    study = results.load_results(rewound.write())
    sections = report.build_sections(study, 1.0)
    titles = [section.title for section in sections]
    assert "Does rewinding help?" not in titles
    assert sum(title.endswith("(the paper's Question 3)") for title in titles) == 1
    assert {search.task for search in study.searches} == {*SOURCES}
    assert len(study.searches) == 12  # without that of standard pruning
    by_title = {x.title: x for section in sections for x in (*section.tables, *section.details)}
    overview = {row[0]: row for row in by_title["Training runs"].rows}
    assert overview[results.REWOUND_OTHER][1] == str(4 * 2 * 3)
    rows = by_title["All networks compared with the full network"].rows
    networks = {row[1] for row in rows}
    assert {"ticket of mlm, standard pruning", "ticket of mlm, rewound to 5 %"} <= networks


def test_dead_and_untrained_networks_are_hatched_and_never_dark(plan):
    directory = plan.write()
    report.write_report(results.load_results(directory), directory / "before", 1.0)

    def flaw(row, task, job):
        row["constant_prediction"] = job in ("none-mlm-on-mrpc-0.7-0", "none-mlm-on-wnli-0.7-0")

    cells = tables((directory / "before/report.md").read_text())
    cells = {row[""]: row for row in cells["Transfer minus full network, points"]}
    assert cells["mlm"]["mrpc"].endswith("●") and cells["mlm"]["wnli"].endswith("●")
    change_rows(directory, flaw)
    study = results.load_results(directory)
    ours = transfer.transfers_of(study, 0.7)
    grid = ours.grid(SOURCES, SOURCES)
    for target in ("mrpc", "wnli"):
        assert grid.cells["mlm", target][1].endswith("†") and ("mlm", target) in grid.hatched
        assert math.isnan(grid.values()[SOURCES.index("mlm")][SOURCES.index(target)])
    assert ours.dark_cells("mlm", SOURCES) == (1, 1)  # sst2 alone can be compared


def test_a_target_whose_full_network_or_own_ticket_is_dead_has_no_dark_cells(plan):
    def flaw(row, task, job):
        dead = {"mrpc": 0, "wnli": 4}.get(task)  # the full network; the ticket of 70 %
        row["constant_prediction"] = "round" in row and row["round"] == dead

    change_rows(plan.write(), flaw)
    study = results.load_results(plan.directory)
    ours = transfer.transfers_of(study, 0.7)
    assert [ours.is_dark("mlm", target) for target in SOURCES] == [True, None, None, None]
    grid = ours.grid(SOURCES, SOURCES)
    assert {(source, "mrpc") for source in SOURCES} | {("wnli", "wnli")} == {*grid.hatched}
    assert grid.cells["mlm", "wnli"][0] == transfer.LIGHT


def test_transferability_counts_other_targets_beside_the_recorded_training_rows(plan):
    def record(row, task, job):
        if task and task != "wnli":
            row["training_rows"] = ROWS[task]

    change_rows(plan.write(), record)
    study = results.load_results(plan.directory)
    assert study.training_rows == {task: ROWS[task] for task in ("sst2", "mrpc", "mlm")}
    section = transferability.transferability(study, 0.7)
    (correlations,), (ours, _) = section.tables, section.details
    rows = {row[0]: row[1:] for row in ours.rows}
    assert rows["mlm"] == ["language modelling", "5,000", "3 of 3", "−4.00"]
    assert rows["wnli"] == ["inference", "not known", "0 of 3", "−6.00"]
    assert rows["mrpc"][0] == "similarity and paraphrase" and rows["sst2"][0] == "single sentence"
    found = [row[3:] for row in correlations.rows if row[0] == "ours"]
    assert found[0] == ["no claim (n < 5)", "—", "3"] and found[1][2] == "2"
    assert all(picture.png.startswith(b"\x89PNG") for _, picture in section.pictures.values())
    assert saved.to_dict(plan.directory)["rows"]["search-mlm-0-seed1"][-1]["training_rows"] == 5000


def test_the_papers_transferability_has_its_counts_and_sizes():
    entries = {entry.task: entry for entry in transferability.papers_sources()}
    figure = paper()["figure2_transfer_70pct_minus_full"]
    for task, entry in entries.items():
        assert (entry.dark, entry.compared) == (figure[task]["count_at_least_same_task"], 10)
        if task != "mlm":  # the number of its blocks is not known
            assert entry.rows == TASKS[task].training_rows
    assert entries["mlm"].rows is None
    values = figure["squad"]["value"]
    others = [x for task, x in values.items() if task != "squad"]
    assert entries["squad"].mean == pytest.approx(sum(others) / 10)


def test_the_papers_tickets_of_larger_tasks_transfer_better_without_mlm():
    entries = transferability.papers_sources()
    known = [entry for entry in entries if entry.rows]
    rho, p, n = transferability.correlate(entries, transferability.DARK)
    assert n == len(known) == 10 and rho > 0.5 and p < 0.05


def test_every_task_of_the_paper_has_a_kind():
    assert {TASKS[task].category for task in paper()["hyperparameters"]} == {*CATEGORIES[:-1]}

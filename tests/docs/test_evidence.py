"""evidence_page.py: a saved study gives the same report, and the page has no other numbers."""

import json

import evidence_page
import pytest
from test_results import LOSS, Plan

from lth_scale.config.errors import BadInput
from lth_scale.science import report, results, saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of two kept studies, one of them unfinished, and of measurements."""
    made = tmp_path_factory.mktemp("some") / "facts"
    for task in ("sst2", "mrpc"):
        plan = Plan(tmp_path_factory.mktemp(task), tasks=[task], seeds=(1, 2, 3))
        for seed in plan.seeds:
            plan.search(task, seed, missing=(task, seed) == ("mrpc", 3))
        plan.transfer(task, 0.5, "random_mask", task, missing=(3,) if task == "mrpc" else ())
        plan.plan["command"] = f"python -m lth_scale.study {task}.yaml"
        saved.save(plan.write(), made / f"small-{task}.json")
    rows = [
        {"what": "a step", "unit": "s", "values": [3.0, 1.0, 8.0]},
        {"what": "a file", "unit": "MB", "values": [5]},
    ]
    how = {"command": "python timed.py", "machine": "a CPU", "versions": "torch 2"}
    (made / "times.json").write_text(json.dumps({"made": how, "rows": rows}))
    return made


@pytest.fixture
def filled(folder):
    """What a page of this text becomes."""

    def fill(text: str) -> str:
        (folder / "page.in").write_text(text, encoding="utf-8")
        return evidence_page.write(folder).read_text(encoding="utf-8")

    return fill


def test_a_saved_study_gives_the_tables_and_figures_of_the_study(tmp_path):
    plan = Plan(tmp_path / "run", tasks=["sst2", "mlm"], seeds=(1, 2))
    for task in plan.tasks:
        for seed in plan.seeds:
            plan.search(task, seed, missing=(task, seed) == ("mlm", 2))
    saved.save(plan.write(), tmp_path / "small.json")
    itself, kept = (
        report.build_sections(results.load_results(tmp_path / "run"), 1.0),
        evidence_page.sections(tmp_path / "small.json"),
    )
    assert [section.tables for section in itself] == [section.tables for section in kept]
    pictures = [
        {name: x.png for section in each for name, (_, x) in section.pictures.items()}
        for each in (itself, kept)
    ]
    assert (
        pictures[0].keys()
        == pictures[1].keys()
        >= {*("scores.png", "layers.png", "similarity.png", "overlap.png")}
    )
    assert pictures[0]["layers.png"] == pictures[1]["layers.png"]


def part(directory, there, lr="1e-4"):
    """A study of three seeds of which those of `there` have been run."""
    plan = Plan(directory, tasks=["sst2", "mrpc"], seeds=(1, 2, 3))
    for task in plan.tasks:
        for seed in plan.seeds:
            plan.search(task, seed, missing=seed not in there)
    for job in plan.plan["jobs"]:
        job["flags"]["learning_rate"] = lr
    return plan.write()


def test_a_study_run_in_parts_is_saved_like_one_run_whole(tmp_path):
    whole, file = saved.to_dict(part(tmp_path / "whole", (1, 2, 3))), tmp_path / "small.json"
    for name, there in (("a", (2,)), ("b", (1, 3)), ("a", (2,))):
        saved.save(part(tmp_path / name, there), file)
    together = json.loads(file.read_text())
    assert together["rows"] == whole["rows"] and together["masks"] == whole["masks"]
    assert sorted(together["finished"]) == sorted(whole["finished"])
    assert together["made"] == whole["made"]  # one command, one machine: said once


def test_the_machines_and_versions_of_both_parts_are_named():
    before = {"command": "old", "machine": "a CPU", "versions": "torch 2/3, git 1"}
    now = {"command": "new", "machine": "a GPU", "versions": "torch 3, git 2"}
    said = {"command": "new", "machine": "a CPU and a GPU", "versions": "torch 2/3, git 1/2"}
    assert saved.merge_provenance(before, now) == said
    assert saved.merge_provenance(said, now) == said, (
        "a machine that took part twice is told of once"
    )


def test_a_machine_without_jobs_is_not_named(tmp_path, monkeypatch):
    file, how = tmp_path / "small.json", {"machine": "a CPU", "versions": "torch 2"}
    monkeypatch.setattr(saved, "provenance", lambda directory, command: {"command": command, **how})
    saved.save(part(tmp_path / "a", (1, 2)), file)
    how["machine"] = "a GPU"
    saved.save(part(tmp_path / "b", ()), file)
    assert json.loads(file.read_text())["made"]["machine"] == "a CPU"
    saved.save(part(tmp_path / "c", (3,)), file)
    assert json.loads(file.read_text())["made"]["machine"] == "a CPU and a GPU"


def test_jobs_saved_under_the_earlier_name_of_their_score_are_kept(tmp_path):
    file = tmp_path / "small.json"
    for name, seeds, score in (("a", (1, 2), "movement"), ("b", (3,), "accumulated_taylor")):
        run = part(tmp_path / name, seeds)
        plan = json.loads((run / "study.json").read_text())
        for job in plan["jobs"]:
            job["flags"]["score"] = score
        (run / "study.json").write_text(json.dumps(plan))
        saved.save(run, file)
    assert all(json.loads(file.read_text())["rows"].values())


def test_saved_jobs_with_other_flags_are_dropped(tmp_path):
    file = tmp_path / "small.json"
    saved.save(part(tmp_path / "a", (1, 2), lr="3e-4"), file)
    saved.save(part(tmp_path / "b", (3,)), file)
    assert json.loads(file.read_text()) == saved.to_dict(tmp_path / "b")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"plan": {"jobs": 1}}', '{"made": {}, "rows": []}']
)
def test_a_file_that_save_did_not_write_is_not_overwritten(tmp_path, text):
    run, file = part(tmp_path / "a", (1,)), tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(
        BadInput, match=r"mine\.json: exists and was not written by --save; use another file or"
    ):
        saved.save(run, file)
    assert file.read_text() == text


def test_scores_and_verdicts_are_those_of_the_results(filled):
    said = filled(
        "{{ score('small-*', 'sst2', 0) }} | "
        "{{ score('small-mrpc', 'mrpc', 0.5, 'random_mask') }} | "
        "{{ highest('small-*', 'sst2', 'strict') }}"
    )
    assert said == "92.0 ± 0.2 (n = 3) | 64.6 ± 0.3 (n = 2 of 3) | 30 %"
    assert (
        filled(
            "{{ score('small-*', 'sst2', 0.6, 'one_shot') }} {{ score('small-*', 'sst2', 0.55) }}"
        )
        == "— —"
    )


def test_tables_of_several_studies_are_joined_and_name_each_command(filled):
    said = filled("{{ table('small-*', 'Scores by sparsity') }}")
    header, _, *rows = [line for line in said.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows] == ["| mrpc", "| mrpc", "| sst2", "| sst2"]
    assert header.count(" %") == len(LOSS) + 1 and "(n = 2 of 3)" in rows[0]
    assert said.count("Made by `python -m lth_scale.study ") == 2 and "mrpc.yaml` on " in said


def test_a_study_that_has_not_started_is_planned_and_missing(filled, folder, tmp_path):
    plan = Plan(tmp_path, tasks=["mlm"], seeds=(1, 2))
    for seed in plan.seeds:
        plan.search("mlm", seed, missing=True)
    saved.save(plan.write(), folder / "later-mlm.json")
    said = filled("{{ table('later-*', 'Scores by sparsity') }}")
    assert said.count("missing") == len(LOSS) + 1 and said.endswith(
        "\n\n<small>Not begun: later-mlm.</small>"
    )


def test_a_study_with_an_unfinished_search_has_started(filled, folder, tmp_path):
    plan = Plan(tmp_path, tasks=["mlm"], seeds=(1,))
    plan.search("mlm", 1)
    saved.save(plan.write(), folder / "begun-mlm.json")
    kept = json.loads((folder / "begun-mlm.json").read_text())
    (folder / "begun-mlm.json").write_text(json.dumps({**kept, "finished": []}))
    assert "Made by `" in filled("{{ table('begun-*', 'Scores by sparsity') }}")


def test_figures_are_stored_next_to_the_results(filled, folder):
    said = filled("{{ picture('small-*', 'scores.png') }}")
    assert said.startswith("![small-all: Score against sparsity, mean ± sample standard deviation")
    assert said.splitlines()[0].endswith("](facts/small-all-scores.png)")
    assert (folder / "small-all-scores.png").read_bytes().startswith(b"\x89PNG")


def test_measurements_are_medians_with_their_spread_and_n(filled):
    said = filled("{{ measured('times') }}\n{{ value('times', 'a step') }}")
    assert "| a step | 3 [1, 8] | s | 3 |\n| a file | 5 | MB | 1 |" in said
    assert "Made by `python timed.py` on a CPU (torch 2)." in said and said.endswith("\n3 s")


def test_a_speed_check_shows_its_command_and_its_verdicts(filled, folder):
    row = {
        "sparse": True,
        "precision": "fp32",
        "status": "ok",
        "ms": [2.0, 1.0, 3.0],
        "cpu_ms": [2.0, 1.0, 3.0],
        "times_best": [1.0, 1.0, 1.0],
        "verdict_best": "the best dense",
        "times_same": [1.0, 0.5, 2.0],
        "verdict_same": "slower",
    }
    cell = {
        "target": "runs/x",
        "sparsity": 0.7,
        "batch_size": 1,
        "sequence_length": 128,
        "threads": 1,
        "device": "cpu",
        "best": {"any": "dense-eager", "fp32": "openvino"},
        "rows": {"dense-eager": row},
    }
    here = {"cpu": "a CPU", "gpu": "", "versions": {"torch": "2", "numpy": "2"}}
    settings = {"batch_size": [1, 8], "task": None, "repeats": 10}
    (folder / "fast.json").write_text(
        json.dumps({"machine": here, "settings": settings, "cells": [cell]})
    )
    said = filled("{{ speed('fast') }}")
    assert (
        said.startswith("![speed-up against sparsity](facts/fast.png)")
        and (folder / "fast.png").is_file()
    )
    assert (
        "| runs/x | 70 % | 1 | dense-eager | 1.00 [0.50, 2.00] | 1.00 [1.00, 1.00] |"
        " the best dense |" in said
    )
    assert (
        "<summary>runs/x, 70 % sparse: batch 1 × 128 tokens, threads: 1</summary>\n\n"
        "Best dense here: dense" in said
    )
    assert "| dense-eager | 2.00 [1.00, 3.00] |" in said
    assert said.endswith(
        "Made by `python -m lth_scale.speed runs/x --batch_size 1 8 --repeats 10` "
        "on a CPU, no GPU (torch 2).</small>"
    )
    assert (
        filled("{{ times('fast', 'dense-eager') }}")
        == "1.00 [0.50, 2.00] × openvino and 1.00 [1.00, 1.00] × dense-eager"
    )


def test_minutes_are_those_of_all_trainings_of_a_job(filled, folder):
    rows = json.loads((folder / "small-sst2.json").read_text())["rows"]["search-sst2-0-seed1"]
    assert (
        len(rows) == 5
        and filled("{{ minutes('small-sst2', 'search-sst2-0-seed1') }}") == "0 minutes"
    )  # a second each


def test_a_page_written_by_something_else_is_kept(tmp_path):
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts/page.in").write_text("text")
    (tmp_path / "facts.md").write_text("precious")
    with pytest.raises(BadInput, match=r"facts\.md: exists and was not written from .*move it"):
        evidence_page.write(tmp_path / "facts")
    assert (tmp_path / "facts.md").read_text() == "precious"


def test_a_page_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "page.in").write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"page\.in: not UTF-8"):
        evidence_page.render(tmp_path)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{{ colour('small-sst2') }}", "'colour' is undefined; the functions are table, picture"),
        ("{{ score() }}", "cannot be filled in"),
        ("{{ score('small-sst2') }}", "cannot be filled in"),
        ("{{ score('small-sst2', 'sst2', 'half') }}", "half"),
        ("{{ highest('small-sst2', 'sst2', 'luck') }}", "luck"),
        ("{{ table('small-sst2', 'Prices') }}", "has no table 'Prices'"),
        ("{{ picture('small-sst2', 'cat.png') }}", "use one of scores.png"),
        ("{{ value('times', 'a leap') }}", "has no row 'a leap'"),
        ("{{ measured('nothing') }}", "nothing.json: cannot be read"),
        ("{{ score('nothing', 'sst2', 0) }}", "nothing.json: cannot be read"),
        ("{{ score('times', 'sst2', 0) }}", "not a file of lth_scale.report --save"),
    ],
)
def test_an_unknown_placeholder_is_named(filled, text, words):
    with pytest.raises(BadInput, match=words):
        filled(text)

"""example_facts.py and what a report shows of it: the answer over seeds, and this test set."""

import json

import numpy
import pandas
import pytest
from test_results import Plan, tables, write_json

from lth_scale.science import report, results, saved
from lth_scale.science.example_facts import (
    DAMAGED,
    FULL_MISSING,
    NONE_KEPT,
    OTHER_ROWS,
    OTHER_SCORE,
    ExampleFacts,
    example_facts,
)
from lth_scale.science.example_tests import compare_shares, mcnemar_p
from lth_scale.science.results import Network
from lth_scale.science.sections import verdicts
from lth_scale.tracking import predictions

FULL, TICKET = Network("sst2").key, Network("sst2", 0.3).key
LABELS = numpy.arange(400, dtype="int16") % 2


def right_of(row, seed):
    """Which examples a network gets right: about as many as its score says."""
    return numpy.random.default_rng(seed).random(400) < row["eval"]["accuracy"] - 0.1


def keep(directory, row, labels=LABELS, seed=0):
    """Write the predictions of a row of results, and their score into it."""
    right = right_of(row, seed)
    guesses = numpy.where(right, labels, 1 - labels).astype("int16")
    predictions.write(directory, {"prediction": guesses, "label": labels})
    row["eval"]["accuracy"] = float(right.mean())


def study_of(directory, seeds=(1, 2, 3), trivial=None):
    """A study of SST-2 whose searches keep predictions."""
    plan = Plan(directory, tasks=["sst2"], seeds=seeds)
    for seed in seeds:
        plan.search("sst2", seed)
    for path in plan.write().glob("jobs/*/results.json"):
        rows = json.loads(path.read_text())
        for row in rows:
            keep(
                path.parent / f"rounds/{row['round']:02d}", row, seed=len(str(path)) + row["round"]
            )
            row["trivial"] = {"constant": {"accuracy": trivial}} if trivial else {}
        write_json(path, rows)
    return directory


def stage(directory, seed, number):
    return directory / f"jobs/search-sst2-0-seed{seed}/rounds/{number:02d}"


def facts_of(directory):
    return example_facts(results.load_results(directory))


def report_of(directory):
    """The tables of a report by title, and results.csv."""
    report.write_report(results.load_results(directory), directory / "report", None)
    found = tables((directory / "report/report.md").read_text())
    return found, pandas.read_csv(directory / "report/results.csv")


ALL, ON_TEST_SET = "All networks compared with the full network", "On this test set"


def test_each_subnetwork_is_compared_with_the_full_network_of_its_seed(tmp_path):
    facts, right = facts_of(study_of(tmp_path)), {}
    assert len(facts.trainings) == 15 and not facts.pooled
    for number in (0, 1):
        arrays = predictions.read(stage(tmp_path, 2, number))
        right[number] = arrays["prediction"] == arrays["label"]
    expected = compare_shares(right[1], right[0])
    training = facts.seeds(TICKET)[2]
    assert training.difference == pytest.approx([100 * x for x in expected])
    assert training.n == 400 and training.mcnemar_p == mcnemar_p(right[1], right[0])
    assert facts.seeds(FULL)[2].difference is None and facts.seeds(FULL)[2].bound > 70


def test_the_report_has_this_test_set_beside_the_answer(tmp_path):
    found, table = report_of(study_of(tmp_path))
    rows = found[ON_TEST_SET]
    assert len(rows) == 12 and {row["examples"] for row in rows} == {"400"}
    answers = [row["answer"] for row in rows if row["sparsity"] == "30 %"]
    (verdict,) = [row for row in found[ALL] if row["sparsity"] == "30 %"]
    counts = {part.rsplit(" ", 1)[0]: part for part in verdict["this test set"].split(" · ")}
    assert counts == {answer: f"{answer} {answers.count(answer)}" for answer in answers}
    assert verdict["seeds and examples, 90 %"] == "—"  # three seeds
    own = table[(table.sparsity == 0.3)].set_index("seed")
    assert [*own.example_answer] == answers and (own.example_n == 400).all()
    assert (own.example_low_90 < own.example_difference).all() and own.mcnemar_p.notna().all()
    assert table[table.sparsity == 0].example_answer.isna().all()


def test_the_answer_over_seeds_does_not_depend_on_predictions(tmp_path):
    study_of(tmp_path)
    columns = [*verdicts.VERDICT_COLUMNS]
    _, with_them = report_of(tmp_path)
    for path in tmp_path.rglob("predictions.safetensors"):
        path.unlink()
    found, without = report_of(tmp_path)
    pandas.testing.assert_frame_equal(with_them[columns], without[columns])
    assert ON_TEST_SET not in found
    assert {row["this test set"] for row in found[ALL]} == {"—"}
    text = (tmp_path / "report/report.md").read_text()
    assert "15 of 15 finished trainings kept no predictions" in text


def test_from_five_seeds_on_there_is_an_interval_over_seeds_and_examples(tmp_path):
    study_of(tmp_path, seeds=(1, 2, 3, 4, 5))
    facts = facts_of(tmp_path)
    pooled, seeds = facts.pooled[TICKET], facts.seeds(TICKET).values()
    assert pooled.difference == pytest.approx(numpy.mean([x.difference[0] for x in seeds]))
    assert pooled.low < pooled.difference < pooled.high
    found, _ = report_of(tmp_path)
    assert all(row["seeds and examples, 90 %"].startswith("[") for row in found[ALL])


def test_unusable_predictions_are_named_and_the_report_goes_on(tmp_path):
    study_of(tmp_path, seeds=(1, 2, 3))
    truncated = stage(tmp_path, 1, 1) / "predictions.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    (stage(tmp_path, 2, 0) / "predictions.safetensors").write_text("damaged")
    (stage(tmp_path, 3, 2) / "predictions.safetensors").unlink()
    path = tmp_path / "jobs/search-sst2-0-seed3/results.json"
    rows = json.loads(path.read_text())
    keep(stage(tmp_path, 3, 1), rows[1], labels=LABELS[::-1].copy())  # of other rows
    right = right_of(rows[3], seed=9)
    predictions.write(stage(tmp_path, 3, 3), {"prediction": ~right + 0, "label": right + 0})
    write_json(path, rows)
    trainings = facts_of(tmp_path).seeds
    assert [x.problem for x in trainings(TICKET).values()] == [
        DAMAGED,
        f"the full network of this seed: {DAMAGED}",
        OTHER_ROWS,
    ]
    assert trainings(TICKET._replace(sparsity=0.5))[3].problem == NONE_KEPT
    assert trainings(TICKET._replace(sparsity=0.6))[3].problem == OTHER_SCORE
    found, table = report_of(tmp_path)
    shown = {(row["sparsity"], row["seed"]): row["answer"] for row in found[ON_TEST_SET]}
    assert shown["30 %", "1"] == DAMAGED and shown["30 %", "3"] == OTHER_ROWS
    assert ("50 %", "3") not in shown and len(shown) == 11
    assert DAMAGED in {*table.example_answer}
    text = (tmp_path / "report/report.md").read_text()
    assert "1 of 15 finished trainings kept no predictions" in text


def test_a_ticket_without_the_full_network_of_its_seed_is_not_compared(tmp_path):
    study_of(tmp_path, seeds=(1, 2))
    path = tmp_path / "jobs/search-sst2-0-seed2/results.json"
    write_json(path, json.loads(path.read_text())[1:])
    trainings = facts_of(tmp_path).seeds(TICKET)
    assert [x.problem for x in trainings.values()] == ["", FULL_MISSING]


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_below_three_seeds_a_network_must_beat_the_baseline_on_the_examples(tmp_path, seeds):
    study_of(tmp_path, seeds=seeds, trivial=0.81)
    study = results.load_results(tmp_path)
    flaw = verdicts.flaw_of(study, FULL)
    assert "is untrained (its score is not shown to be better than 81.0" in flaw
    judged = verdicts.by_sparsity(study, FULL, None).values()
    assert {x.verdict.reason for x in judged} == {f"no verdict: {flaw}"}
    found, _ = report_of(tmp_path)
    assert {row["answer"] for row in found[ON_TEST_SET]} == {"no verdict"}
    assert found["Dead, untrained and starved networks"][0]["network"] == "full network"


def test_below_three_seeds_a_network_above_the_baseline_is_trained(tmp_path):
    study_of(tmp_path / "above", seeds=(1,), trivial=0.5)
    assert verdicts.flaw_of(results.load_results(tmp_path / "above"), FULL) == ""
    study_of(tmp_path / "unknown", seeds=(1,), trivial=0.99)
    (stage(tmp_path / "unknown", 1, 0) / "predictions.safetensors").unlink()
    assert verdicts.flaw_of(results.load_results(tmp_path / "unknown"), FULL) == ""


def test_a_saved_study_shows_the_same_without_predictions(tmp_path):
    study_of(tmp_path, seeds=(1, 2, 3, 4, 5))
    expected = facts_of(tmp_path)
    saved.save(tmp_path, tmp_path / "saved.json")
    kept = json.loads((tmp_path / "saved.json").read_text())["examples"]
    assert ExampleFacts.from_json(kept) == expected
    for path in tmp_path.rglob("predictions.safetensors"):
        path.unlink()
    saved.save(tmp_path, tmp_path / "saved.json")  # again, with what is left
    again = json.loads((tmp_path / "saved.json").read_text())["examples"]
    assert ExampleFacts.from_json(again) == expected


def test_a_study_of_real_trainings_is_compared_on_its_test_set(tmp_path, search):
    plan = Plan(tmp_path, tasks=["sst2"], seeds=(1, 2))
    for seed in plan.seeds:
        name = f"search-{seed}"
        plan.job(name, "imp", True, task="sst2", seed=seed, target_sparsity=0.1)
        for sparsity in (0.0, 0.1):
            plan.cell(name, "sst2", seed, sparsity, source="sst2" if sparsity else None)
        search(output_dir=tmp_path / "jobs" / name, seed=seed, target_sparsity=0.1)
    found, table = report_of(plan.write())
    rows = found[ON_TEST_SET]
    assert [row["examples"] for row in rows] == ["20", "20"]
    score = table[table.primary].set_index(["sparsity", "seed"]).value
    for row in table[table.example_difference.notna()].itertuples():
        difference = score[0.1, row.seed] - score[0.0, row.seed]
        assert row.example_difference == pytest.approx(difference)

"""The three sentences of a report, and the pages that show them."""

import html
import json
import re

import pytest
from test_results import Plan

from lth_scale.config.markdown import Section, Table
from lth_scale.science import pages, report, results
from lth_scale.science.sections.answer import answer
from lth_scale.science.sections.scores import spans


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two tasks with a control; on sst2 one training is missing."""
    plan = Plan(tmp_path_factory.mktemp("answered"), tasks=["sst2", "mrpc"])
    for task in plan.tasks:
        for seed in plan.seeds:
            plan.search(task, seed)
        plan.transfer(task, 0.5, "reinit", task, missing=(3,) if task == "sst2" else ())
    return results.load_results(plan.write())


def test_the_sentences_say_what_matches_what_the_controls_do_and_what_is_undecided(study):
    matches, controls, undecided, missing = answer(study, None).text
    assert matches == (
        "Tickets match the full network (a loss of δ or more is rejected; δ = 1 point) on sst2 at "
        "30 to 60 % (n = 3); mrpc at 30 to 60 % (n = 3). They are worse on sst2 at 70 % (n = 3); "
        "mrpc at 70 % (n = 3)."
    )
    assert controls == (
        "Controls compared with the ticket of the same sparsity: ticket on θ₀′ (re-initialised): "
        "undecided 2 of 2."
    )
    assert undecided == "Undecided: 0 of 8 comparisons with the full network."
    assert missing == "Missing: 1 of 36 trainings."


def test_the_sentences_change_with_the_results(study):
    matches, _, undecided, _ = answer(study, 0.0).text
    assert matches.startswith("No ticket is shown to match the full network (δ = 0 points).")
    assert undecided.startswith("Undecided: 2 of 8 comparisons")
    matches, _, undecided, _ = answer(study, 5.01).text
    assert "sst2 at 30 to 60 % (n = 3)" in matches and "worse" not in matches
    seeds = re.search(r"2 of 8 .* network; (\d+) further seeds would settle 2 of them", undecided)
    assert seeds and int(seeds[1]) > 0


def test_transfers_alone_are_answered_for(tmp_path):
    plan = Plan(tmp_path, tasks=["sst2"])
    plan.transfer("sst2", 0.5, source="mlm")
    for seed in plan.seeds:
        plan.cell("none-mlm-on-sst2-0.5-0", "sst2", seed, 0.0)
    matches, controls, _ = answer(results.load_results(plan.write()), None).text[:3]
    assert matches == "No ticket is shown to match the full network (δ = 1 point)."
    assert controls == "No control was planned: nothing here shows that the mask or θ₀ matters."


def test_each_task_has_its_own_margin_in_the_answer(tmp_path):
    plan = Plan(tmp_path, tasks=["sst2", "mlm"])
    for task in plan.tasks:
        for seed in plan.seeds:
            plan.search(task, seed)
    for path in plan.write().glob("jobs/search-mlm*/results.json"):
        rows = json.loads(path.read_text())
        rows = [row | {"eval": {"loss": 3 - row["eval"]["accuracy"]}} for row in rows]
        path.write_text(json.dumps(rows))
    study = results.load_results(tmp_path)
    matches, _, undecided = answer(study, None).text
    assert "rejected; δ = 1 point on sst2; δ needs --delta on mlm) on sst2 at" in matches
    assert undecided.endswith("; 4 of them have no δ (--delta gives one).")
    assert (
        "(a loss of δ or more is rejected; δ = 0.1 points on sst2; δ = 0.1 on mlm)"
        in (answer(study, 0.1).text[0])
    )


def test_every_question_has_one_table_and_the_details_are_folded(study):
    sections = report.build_sections(study, None)
    assert max(len(section.tables) for section in sections) == 1


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ([], ""),
        ([0.1, 0.3], "10 %, 30 %"),
        ([0.1, 0.2, 0.3], "10 to 30 %"),
        ([0.1, 0.2, 0.4, 0.6], "10 %, 20 %, 40 %, 60 %"),
        ([0.1, 0.2, 0.3, 0.4, 0.6], "10 to 40 %, 60 %"),
    ],
)
def test_sparsities_in_a_row_are_a_span(chosen, text):
    assert spans(chosen, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == text


def test_table_2_is_written_for_markdown_and_latex(study, tmp_path):
    paths = {path.name: path for path in report.write_report(study, tmp_path, None)}
    rows = paths["table2.md"].read_text().splitlines()
    lines = [line for line in paths["table2.tex"].read_text().splitlines() if line.endswith("\\\\")]
    assert len(lines) == len(rows) - 1  # the rule of Markdown
    assert lines[1].startswith("sst2 & ours & 50 \\% (next lower available) & 3 & --- & 92.0")
    assert "".join(lines).isascii() and "84.8 $\\pm$ 0.4, matches" in "".join(lines)
    assert "".join(lines).count("$") % 2 == 0 and "$$" not in "".join(lines)


def test_latex_shows_special_characters_literally():
    text = pages.latex(Table("a & b", ["θ₀′", "50 %"], [["x_y#~", "1 ± 2"]]))
    assert "$\\theta_0'$ & 50 \\%" in text and "x\\_y\\#\\textasciitilde" in text


def test_answers_are_coloured_and_sources_are_numbered_footnotes():
    table = Table("t", ["task", "worse at", "answer"], [["a", "—", "matches"], ["b", "70 %", "—"]])
    none = Table("n", ["matches at"], [["none"]])
    first = Section("What?", ["x"], [table], sources=["one", "two"])
    second = Section("And?", sources=["two"], reading=["how"], details=[none])
    page = pages.html("T", "", [first, second], Section("The answer", ["yes"]))
    assert '<td class="good">matches</td>' in page and '<td class="bad">70' in page
    assert '<td class="bad">—</td>' not in page and "<td>none</td>" in page
    assert re.findall(r'<li id="source-(\d)">(\w+)</li>', page) == [("1", "one"), ("2", "two")]
    assert page.index("The answer") < page.index('href="#what"') < page.index('id="what"')
    assert html.unescape(page).count("<details>") == 1
    text = pages.markdown("T", "", [first, second], Section("The answer", ["yes"]))
    assert "[1](#sources), [2](#sources)" in text and "1. one\n2. two\n" in text
    assert text.index("<details>") < text.index("how") < text.index("</details>")

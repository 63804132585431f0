"""The figures of docs/reproduce.md are those of the studies and of lth_scale/science/paper.json."""

import re
from pathlib import Path

import pytest

from lth_scale.science.paper import paper, printed
from lth_scale.science.study_command import StudyFlags, run
from lth_scale.science.study_file import load_study

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
PAPER = ROOT / "studies/paper.yaml"
SECTIONS = [*(ROOT / "lth_scale/science/sections").glob("*.py")]
TASKS = [*paper()["table2"]["sparsity"]["value"]]
STUDIES = [file.stem for file in sorted(PAPER.parent.glob("*.yaml")) if file.stem != "demo"]


def cells(name: str) -> list[str]:
    (row,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", TEXT, re.M)
    return [cell.strip() for cell in row.split("|")]


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_papers_study_includes_every_study_of_a_part():
    names = [spec.name for spec in load_study(PAPER, {})]
    assert sorted(names) == STUDIES


def test_every_study_is_in_the_table_of_tables_and_figures_with_its_hours():
    named = re.findall(r"`(\w+)`,(?: all of them, takes)? (\d+) h\b", section("Tables and figures"))
    assert {*named} == {(name, cells(f"`{name}`")[-1]) for name in STUDIES}


@pytest.mark.parametrize("name", ["table2", "table4"])
def test_controls_are_trained_at_the_sparsities_of_the_table(name):
    (spec,) = load_study(PAPER.with_stem(name), {})
    percents = {task: printed(task)["sparsity" if name == "table2" else "strict"] for task in TASKS}
    planned = spec.content.control_sparsities.items()
    assert {task: round(100 * x) for task, (x,) in planned} == percents


def test_every_section_of_the_report_that_is_named_exists():
    code = "".join(file.read_text(encoding="utf-8") for file in SECTIONS)
    titles = re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", " ".join(TEXT.split()))
    assert "All verdicts" in titles
    for title in titles:
        assert f'"{title.removesuffix("?")}' in code, title


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_states_the_cost_that_a_dry_run_prints(name, capsys, tmp_path):
    file, output = str(PAPER.with_stem(name)), str(tmp_path / "out")
    run(StudyFlags(study=file, output_dir=output, dry_run=True), lambda _: [])
    (total,) = re.findall(
        r"^in all +(\S+) +(\S+) +\? +(\d+) of \d+ jobs", capsys.readouterr().out, re.M
    )
    steps, tokens, jobs = (int(number.replace(",", "")) for number in total)
    hours = 6 * 1.1e8 * tokens / (1e14 * 3600)
    assert cells(f"`{name}`") == [f"{x:,.0f}" for x in (jobs, steps, tokens, hours)]


@pytest.mark.parametrize("task", TASKS)
def test_the_papers_numbers_are_those_of_the_reference_file(task):
    column = {name: entry["value"][task] for name, entry in paper()["table2"].items()}
    names = {"stsb": "STS-B", "sst2": "SST-2", "cola": "CoLA", "squad": "SQuAD"}
    assert cells(names.get(task, task.upper())) == [
        f"{column['sparsity']} %",
        f"{column['full_bert_mean']} ± {column['full_bert_std']}",
        f"{column['f(m_IMP,theta0)_mean']} ± {column['f(m_IMP,theta0)_std']}",
        f"{column['f(m_RP,theta0)']}",
    ]

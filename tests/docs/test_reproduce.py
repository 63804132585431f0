"""The figures of docs/reproduce.md are those of the studies and of lth_scale/science/paper.json."""

import re
import sys
from pathlib import Path

import pytest

from lth_scale import study
from lth_scale.science.paper import paper
from lth_scale.science.study_file import load_study

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
PAPER = ROOT / "studies/paper.yaml"
STUDIES = [file.stem for file in sorted(PAPER.parent.glob("*.yaml")) if file.stem != "demo"]


def cells(name: str) -> list[str]:
    (row,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", TEXT, re.M)
    return [cell.strip() for cell in row.split("|")]


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_papers_study_includes_every_study_of_a_part():
    names = [spec.name for spec in load_study(PAPER, {})]
    assert sorted(names) == STUDIES


def test_every_study_is_in_the_table_of_tables_and_figures():
    named = set(re.findall(r"`(\w+)`", section("Tables and figures")))
    assert named.issuperset(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_states_the_cost_that_a_dry_run_prints(name, monkeypatch, capsys, tmp_path):
    file, output = str(PAPER.with_stem(name)), str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["study", file, "--dry_run", "--output_dir", output])
    study.main()
    (total,) = re.findall(
        r"^in all +(\S+) +(\S+) +\? +(\d+) of \d+ jobs", capsys.readouterr().out, re.M
    )
    steps, tokens, jobs = (int(x.replace(",", "")) for x in total)
    hours = 6 * 1.1e8 * tokens / (1e14 * 3600)
    assert cells(f"`{name}`") == [f"{x:,.0f}" for x in (jobs, steps, tokens, hours)]


@pytest.mark.parametrize("task", paper()["table2"]["sparsity"]["value"])
def test_the_papers_numbers_are_those_of_the_reference_file(task):
    column = {name: entry["value"][task] for name, entry in paper()["table2"].items()}
    names = {"stsb": "STS-B", "sst2": "SST-2", "cola": "CoLA", "squad": "SQuAD"}
    assert cells(names.get(task, task.upper())) == [
        f"{column['sparsity']} %",
        f"{column['full_bert_mean']} ± {column['full_bert_std']}",
        f"{column['f(m_IMP,theta0)_mean']} ± {column['f(m_IMP,theta0)_std']}",
        f"{column['f(m_RP,theta0)']}",
    ]

"""The figures of docs/reproduce.md are those of the studies and of lth_scale/science/paper.json."""

import re
from pathlib import Path

import pytest

from lth_scale.science.paper import paper
from lth_scale.science.plans import build_plan
from lth_scale.science.runner import steps_of
from lth_scale.science.study_file import load_study

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")


def cells(name: str) -> list[str]:
    (row,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", TEXT, re.M)
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.parametrize("name", ["table2", "figure2_transfer", "rewinding", "question3", "paper"])
def test_the_page_states_the_actual_cost_of_a_study(name):
    steps = tokens = 0.0
    jobs = build_plan(load_study(ROOT / f"studies/{name}.yaml", {})).jobs.values()
    for job in jobs:
        steps += steps_of(job)
        tokens += steps_of(job) * job.args.per_device_train_batch_size * job.args.max_seq_length
    assert cells(f"`{name}`")[1:] == [str(len(jobs)), f"{steps:,.0f}", f"{tokens:,.0f}"]


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

"""A study gives names of its own to data sets of one kind of task."""

import pytest
import yaml

from lth_scale.config.errors import BadInput
from lth_scale.science.plans import build_plan
from lth_scale.science.study_file import load_study
from lth_scale.science.study_record import parse_record
from lth_scale.tasks.registry import TASKS


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The registered tasks, restored after the test."""
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    monkeypatch.setattr(TASKS, "aliases", {})


def write_study(directory, tasks):
    for name in ("a.csv", "b.csv"):
        (directory / name).write_text("text,label\n")
    study = {
        "flags": {"model_name_or_path": "embedded", "validation_split_percentage": 10},
        "tasks": tasks,
        "seeds": [1],
        "sparsities": {task: [0.1] for task in tasks},
        "transfer": {"sources": [*tasks], "targets": [*tasks], "sparsity": 0.1},
    }
    path = directory / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def test_two_data_sets_of_one_kind_have_jobs_and_conditions_of_their_own(tmp_path):
    tasks = {
        name: {"task": "text-classification", "train_file": str(tmp_path / f"{file}.csv")}
        for name, file in (("reviews", "a"), ("tickets", "b"))
    }
    plan = build_plan(load_study(write_study(tmp_path, tasks), {}))
    files = {job.id: job.args.train_file for job in plan.jobs.values()}
    assert files["search-reviews-seed1"] == tasks["reviews"]["train_file"]
    assert files["search-tickets-seed1"] == tasks["tickets"]["train_file"]
    assert "transfer-tickets-seed1-from-reviews-seed1-0.10-none" in files
    assert {job.args.task for job in plan.jobs.values()} == {"text-classification"}
    content = plan.to_dict()
    TASKS._entries.pop("reviews"), TASKS._entries.pop("tickets")  # as in another process
    TASKS.aliases.clear()
    record = parse_record(content)
    assert record.tasks == ["reviews", "tickets"] == [*TASKS.aliases]
    assert {job.task_name for job in record.jobs} == {"reviews", "tickets"}
    assert TASKS["reviews"] is TASKS["text-classification"]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sst2", "text-classification", "another name"),
        ("reviews", "classification", "no such task"),
        ("a/b", "text-classification", "not a name"),
    ],
)
def test_a_name_that_is_taken_or_unknown_is_refused(name, kind, expected, tmp_path):
    path = write_study(tmp_path, {name: {"task": kind, "train_file": "a.csv"}})
    with pytest.raises(BadInput, match=expected):
        load_study(path, {})

"""The report of a study that is running, of jobs that vanish, and of several reports at once."""

import collections
import fcntl
import os
import shutil
import subprocess
import sys
import time

import pandas
import pytest
import yaml
from test_results import Plan, masks

from lth_scale.config import manifest
from lth_scale.pruning.ticket import Ticket
from lth_scale.science import report, results
from lth_scale.science.sections import masks as masks_section

TINY = {
    "flags": {"preset": "demo", "max_steps": 2, "prune_rate": 0.2, "report_to": "none"},
    "tasks": ["sst2"],
    "seeds": [1],
    "sparsities": [0.2, 0.4],
    "controls": ["random_mask"],
    "control_sparsities": [0.4],
}


def test_reports_of_a_running_study_name_the_state_of_each_job(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    directory = tmp_path / "study"
    command = ["-m", "lth_scale.study", tmp_path / "tiny.yaml", "--output_dir", directory]
    seen = []
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL) as process:
        while not (directory / "study.json").exists() and process.poll() is None:
            time.sleep(0.05)
        while process.poll() is None:
            study = results.load_results(directory)
            report.write_report(study, tmp_path / "report", None)
            seen.append({state: tuple(jobs) for state, jobs in study.unfinished.items()})
            time.sleep(0.2)
    search, control = "search-sst2-seed1", "transfer-sst2-seed1-0.40-random_mask"
    assert {"running": (search,), "not started": (control,)} in seen
    assert {"running": (control,)} in seen
    assert not any("failed or interrupted" in states for states in seen)
    final = results.load_results(directory)
    report.write_report(final, tmp_path / "report", None)
    assert final.unfinished == {} and not final.conditions.value.isna().any()
    assert "2 planned, 0 not finished" in (tmp_path / "report/report.md").read_text()


@pytest.fixture
def small(tmp_path):
    plan = Plan(tmp_path, tasks=["sst2"], seeds=(1, 2))
    for seed in plan.seeds:
        plan.search("sst2", seed)
    return plan


def test_the_state_of_a_job_is_that_of_its_directory_lock_and_log(small, tmp_path):
    small.search("sst2", 3, missing=True)
    first, second, third = (tmp_path / "jobs" / f"search-sst2-0-seed{i}" for i in (1, 2, 3))
    (second / "complete").unlink()
    with open(third.with_name(f"{third.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        study = results.load_results(small.write())
        assert study.states[first.name] == "finished"
        assert study.unfinished == {"running": [third.name], "failed or interrupted": [second.name]}
    assert results.job_state(third) == "not started"
    third.with_name(f"{third.name}.log").touch()
    assert results.job_state(third) == "failed or interrupted"


def test_a_report_writes_nothing_in_the_directories_of_jobs(small, tmp_path):
    def snapshot():
        paths = sorted((tmp_path / "jobs").rglob("*"))
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "jobs", *paths)}

    (tmp_path / "jobs/search-sst2-0-seed1.lock").touch()
    before = snapshot()
    report.write_report(results.load_results(small.write()), tmp_path / "report", None)
    assert snapshot() == before


def test_a_job_that_is_begun_again_while_it_is_read_is_missing(small, tmp_path, monkeypatch):
    read = results.read_json

    def vanish(path):
        if path.parent.name == "search-sst2-0-seed2":
            shutil.rmtree(path.parent)
        return read(path)

    monkeypatch.setattr(results, "read_json", vanish)
    study = results.load_results(small.write())
    assert study.scores(results.Network("sst2")).isna().tolist() == [False, True]


def test_a_ticket_that_vanishes_is_missing_and_a_damaged_one_is_an_error(tmp_path):
    path = tmp_path / "ticket.safetensors"
    assert masks_section._load(path) is None
    Ticket(masks("sst2", 1, 0.5), task="sst2").save(path)
    assert masks_section._load(path).masks
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"ticket\.safetensors"):
        masks_section._load(path)


def test_two_reports_at_once_write_the_same_files_as_one(small, tmp_path):
    command = [sys.executable, "-m", "lth_scale.report", small.write(), "--report_to", "none"]
    command += ["--output_dir", tmp_path / "both"]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    paths = report.write_report(results.load_results(tmp_path), tmp_path / "one", None)
    names = {path.name for path in paths}
    assert {*os.listdir(tmp_path / "both")} == {*names, manifest.LISTING}
    assert {"scores.svg", "layers.pdf", "report.html"} <= names
    for path in paths:
        assert (tmp_path / "both" / path.name).read_bytes() == path.read_bytes()


def test_work_does_not_grow_with_seeds_but_for_reading_each_file_once(tmp_path, monkeypatch):
    scans, reads = collections.Counter(), collections.Counter()
    select, read = pandas.DataFrame.__getitem__, results.read_json

    def counted(table, key):
        scans[seeds] += 1
        return select(table, key)

    def read_once(path):
        reads[path] += 1
        return read(path)

    monkeypatch.setattr(pandas.DataFrame, "__getitem__", counted)
    monkeypatch.setattr(results, "read_json", read_once)
    for seeds in (3, 9):
        plan = Plan(tmp_path / str(seeds), tasks=["sst2"], seeds=range(seeds))
        for seed in plan.seeds:
            plan.search("sst2", seed)
        report.build_sections(results.load_results(plan.write()), None)
    assert scans[3] == scans[9] > 0
    assert {*reads.values()} == {1} and len(reads) == 2 + 3 + 9

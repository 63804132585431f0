"""Registered trackers and the events that they get; the names of stages."""

from pathlib import Path

import pytest

from lth_scale.tracking.stages import Stage
from lth_scale.tracking.trackers import TRACKERS, Tracker


class Recorder:
    """A listener that keeps the names of its events and stages."""

    def __init__(self, args, directory, task):
        self.directory, self.events = directory, []

    def start(self, stage, sparsity, steps, resumed):
        self.events.append(f"start {stage.name}")

    def step(self, step, loss):
        self.events.append(f"step {step}")

    def usage(self, step, metrics):
        self.events.append(f"usage {step}")

    def end(self, stage, row):
        self.events.append(f"end {stage.name}")

    def finish(self, pictures, table):
        self.events.append("finish")


@pytest.fixture
def recorders(monkeypatch):
    """Register `--report_to recorder`; return the list of listeners that it creates."""
    listeners = []

    def create(*how):
        listeners.append(Recorder(*how))
        return listeners[-1]

    monkeypatch.setitem(TRACKERS._entries, "recorder", Tracker(create))
    return listeners


FLAGS = {"report_to": "recorder", "max_steps": 2, "logging_steps": 2}


def test_a_registered_tracker_gets_the_events_of_a_search(search, recorders):
    out = search(**FLAGS, target_sparsity=0.1)
    (recorder,) = recorders
    stages = [
        [f"start {name}", "step 1", "step 2", "usage 2", f"end {name}"]
        for name in ("round 00", "round 01")
    ]
    assert recorder.events == [*stages[0], *stages[1], "finish"] and recorder.directory == out


def test_each_seed_of_a_transfer_has_its_own_listener(transfer, recorders):
    out = transfer(1, 2, **FLAGS)
    assert [recorder.directory for recorder in recorders] == [out / "seeds/01", out / "seeds/02"]
    assert [recorder.events[0] for recorder in recorders] == ["start seed 01", "start seed 02"]
    assert [recorder.events.count("finish") for recorder in recorders] == [1, 1]


def test_stages_know_their_names_and_files():
    stages = {
        Stage.round(3): ("round 03", "rounds/03", "results.json"),
        Stage.round(3, "reinit"): ("reinit 03", "controls/reinit/03", "controls.json"),
        Stage.seed(42, "reinit"): ("seed 42", "seeds/42", "results.json"),
    }
    for stage, (name, path, table) in stages.items():
        assert (stage.name, stage.path, stage.table) == (name, Path(path), table)

"""Delivery of a journal to MLflow: order, replay after failures, and what cannot be sent.

A point keeps its time and a run its key: records that may have been sent before are looked up, and
runs that were deleted are sent again.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from lth_scale.config.texts import reason
from lth_scale.distributed import compat
from lth_scale.tracking.console import print_line
from lth_scale.tracking.mlflow import journal, settings
from lth_scale.tracking.mlflow.connection import connect
from lth_scale.tracking.mlflow.journal import POINTS, JournalLine, is_event
from lth_scale.tracking.mlflow.runs import RunWriter
from lth_scale.tracking.mlflow.sender import (
    JournalSender,
    PermanentFailure,
    is_transient,
    remedy,
    start,
)

DAMAGED = "damaged"  # in place of the event of a line that cannot be read
SKIPPED = "left out"  # in mlflow.json, in place of the id of a run that MLflow rejected


class MlflowDelivery:
    """Delivers one journal to one store. Called only by the thread of its sender."""

    sender: JournalSender
    writer: RunWriter

    def __init__(self, store: str):
        self.store, self.is_connected = store, False
        self._reported: set[str] = set()  # events of which a line was skipped, and `experiment`

    def __call__(self, sender: JournalSender, lines: list[JournalLine]) -> Iterator[int]:
        """Send lines in order, and yield the offset up to which all are sent.

        If runs were deleted, rewinds the progress to where they start and yields nothing.
        """
        self.sender = sender
        if not self.is_connected and self._connect():
            return
        for key, group in groupby(lines, _batch_key):
            batch = list(group)
            if key == DAMAGED:
                self._skip(batch[0], ValueError("the line is damaged"))
                yield batch[-1].end
                continue
            try:
                self._send(batch)
            except Exception as error:
                self._expect_replay(batch)
                self.is_connected = False
                if is_transient(error):
                    raise
                if self._connect():
                    return
                yield from self._send_singly(batch)
            yield batch[-1].end

    def _send(self, lines: list[JournalLine]) -> None:
        record = lines[0].record
        run = self.sender.progress.runs.get(record.get("stage", ""))
        if record["event"] != "start" and run == SKIPPED:
            raise ValueError("its run could not be created")
        self.writer.write(lines, is_replay=lines[0].start < self.sender.replay_end)

    def _send_singly(self, lines: list[JournalLine]) -> Iterator[int]:
        """Send the lines of a rejected batch one by one, and skip those that are rejected again."""
        for line in lines:
            try:
                self._send([line])
            except Exception as error:
                self._expect_replay([line])
                is_parent = line.record["event"] == "parent"
                if is_parent or is_transient(error) or remedy(error, self.store):
                    self.is_connected = False
                    raise self._classified(error) from error
                self._skip(line, error)
            yield line.end

    def _skip(self, line: JournalLine, error: Exception) -> None:
        event = line.record["event"] if is_event(line.record) else DAMAGED
        if event == "start":
            self.sender.progress.runs[line.record["stage"]] = SKIPPED
        if event not in self._reported:
            print_line(
                f"MLflow: the record at byte {line.start} of {self.sender.path} is skipped, as "
                f"are others like it: {reason(error)}"
            )
        self._reported.add(event)

    def _expect_replay(self, lines: list[JournalLine]) -> None:
        """After a failure: some of these lines may have been stored."""
        self.sender.replay_end = max(self.sender.replay_end, lines[-1].end)
        self.writer.forget()

    def _classified(self, error: Exception) -> Exception:
        """Return a transient error unchanged, and others as PermanentFailure with the remedy."""
        if is_transient(error):
            return error
        why = reason(error).rstrip(".")
        usual = f"{why}. Correct MLFLOW_TRACKING_URI, or use --report_to none"
        return PermanentFailure(remedy(error, self.store) or usual)

    def _connect(self) -> bool:
        """Connect to the store. True if runs were deleted there and the progress was rewound."""
        try:
            client, experiment = connect(self.store)
            self.writer = RunWriter(client, self.sender.progress)
            is_rewound = self._rewind(experiment)
        except Exception as error:
            raise self._classified(error) from error
        self.is_connected = True
        return is_rewound

    def _rewind(self, experiment: str) -> bool:
        """Compare the store's runs with the progress, and go back to the first deleted one.

        A child needs its parent's id, so all runs are sent again if the parent was deleted.
        """
        creating = [
            line
            for line in journal.events(self.sender.path)
            if line.record["event"] in ("parent", "start")
        ]
        # The last line that creates a run counts.
        starts = {line.record.get("stage", "parent"): line.start for line in creating}
        progress, sent = self.sender.progress, self.sender.progress.sent
        runs = []
        if sent:
            # The experiment may have been renamed since.
            experiments = {experiment, progress.experiment or experiment}
            key = next((line.record["key"] for line in creating), "")
            runs = self.writer.find(f"LIKE '{key}/%'", experiments)
        homes = {SKIPPED: experiment, **{run.info.run_id: run.info.experiment_id for run in runs}}
        progress.experiment = homes.get(progress.runs.get("parent", SKIPPED), experiment)
        self._report_experiment(experiment)
        was_sent = {name for name, start in starts.items() if start < sent}
        lost = {name for name in was_sent if progress.runs.get(name) not in homes}
        lost = was_sent if "parent" in lost else lost
        for name in [*progress.runs]:
            if name in lost or name not in starts:
                del progress.runs[name]
        self.sender.replay_end = max(self.sender.replay_end, sent)
        progress.sent = min([starts[name] for name in lost], default=sent)
        return bool(lost)

    def _report_experiment(self, requested: str) -> None:
        """Print once that runs stay in the experiment in which they started."""
        current = self.sender.progress.experiment
        if current == requested or "experiment" in self._reported or not any(settings.experiment()):
            return
        name = self.writer.client.get_experiment(current).name
        print_line(
            f"MLflow: the runs of {self.sender.path} started in the experiment {name!r} and "
            "continue there"
        )
        self._reported.add("experiment")


def start_sending(path: Path, store: str) -> JournalSender:
    """Start to deliver the journal at `path` to an MLflow store."""
    if not store.startswith("http"):  # not in the thread: a fork during an import can deadlock
        compat.import_store()
    return start(path, store, MlflowDelivery(store))


def _batch_key(line: JournalLine) -> str | int:
    """Return a key that consecutive points of one run share, and every other line has alone."""
    if not is_event(line.record):
        return DAMAGED
    return line.record["stage"] if line.record["event"] in POINTS else line.start

"""The output directory: the record of a run, from which the same command continues.

Written by the main process only and read by all, so it must be on a file system that all ranks
share.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from lth_scale.config import files, listing, locks, run_files
from lth_scale.config.arguments import Arguments, Training, Transfer
from lth_scale.config.errors import BadInput
from lth_scale.config.redaction import redacted
from lth_scale.tracking import provenance, run_checks
from lth_scale.tracking.provenance import Facts
from lth_scale.tracking.rows import Row
from lth_scale.tracking.stages import Stage
from lth_scale.tracking.versions import git_commit, versions

PATIENCE = 45  # seconds; launchers give their processes 30 to stop


@dataclass(frozen=True)
class RunDirectory:
    """The files of one search or transfer in `directory`."""

    directory: Path
    arguments: Training

    @classmethod
    def open(cls, args: Training) -> "RunDirectory":
        """Open --output_dir. Raises BadInput if the run cannot start or continue there."""
        directory = Path(args.output_dir)
        run_checks.check(directory, args)
        return cls(directory, args)

    def saved_arguments(self) -> Facts:
        """Return arguments.json of when the run began, or {} before. Raises BadInput if damaged."""
        return run_checks.saved_arguments(self.directory)

    def check_facts(self, facts: Facts) -> None:
        """Raise BadInput if the run began with other facts of `provenance`."""
        run_checks.check_facts(self.directory, facts)

    def notices(self, facts: Facts) -> list[str]:
        """Describe what changed since the run began, or was not recorded then; a line each."""
        if not (saved := self.saved_arguments()):
            return []
        names = ("digests", *facts, *self.arguments.as_dict())
        changes = provenance.changes(saved, {**facts, "versions": versions()})
        return changes + provenance.not_recorded(saved, names)

    def begin(self, facts: Facts) -> None:
        """Lock the directory and write arguments.json, after all checks. Raises BadInput.

        facts: what results depend on besides flags, digests and versions. Waits for a process
        that is about to stop.
        """
        started = time.monotonic()
        while owner := locks.acquire(self.directory):
            if time.monotonic() - started > PATIENCE:
                raise BadInput(
                    f"--output_dir {self.directory}: {owner} is running there; wait for it, or "
                    "stop it"
                )
            time.sleep(0.5)
        run_files.delete_unfinished(self.directory)
        path = self.directory / "arguments.json"
        if path.exists():  # perhaps written by another process since the first check
            run_checks.check_arguments(self.directory, self.arguments)
            return
        inputs = {"digests": provenance.digests(self.arguments), **facts}
        code = {"versions": versions(), "git_commit": git_commit()}
        files.write_json(path, {**redacted(self.arguments.as_saved()), **inputs, **code})

    def path(self, stage: Stage) -> Path:
        """Return the directory of a stage."""
        return self.directory / stage.path

    def is_complete(self, stage: Stage) -> bool:
        """True once everything about the stage is on disk."""
        return (self.path(stage) / "complete").is_file()

    def complete(self, stage: Stage, row: Row) -> None:
        """Write a stage's metrics.json and the table of its kind, then mark it complete."""
        directory = self.path(stage)
        files.write_json(directory / "metrics.json", row)
        others = [other for other in self._rows(stage) if other[stage.key] != row[stage.key]]
        table = sorted([*others, row], key=lambda entry: entry[stage.key])
        files.write_json(self.directory / stage.table, table)
        files.write_bytes(directory / "complete", b"")

    def round_rows(self) -> list[Row]:
        """Return metrics.json of every complete round, in order."""
        return self._rows(Stage.round(0))

    def control_rows(self) -> list[Row]:
        """Return metrics.json of every complete control of a search, in order."""
        return self._rows(Stage.round(0, self.control)) if self.control != "none" else []

    def seed_rows(self) -> list[Row]:
        """Return metrics.json of every complete seed of a transfer, in order."""
        return self._rows(Stage.seed(0))

    def all_rows(self) -> list[Row]:
        """Return metrics.json of every complete stage."""
        return [*self.round_rows(), *self.seed_rows(), *self.control_rows()]

    def _rows(self, kind: Stage) -> list[Row]:
        """Return metrics.json of the complete stages of the same kind."""
        parent = self.path(kind).parent
        stages = [
            path for path in run_files.stage_directories(self.directory) if path.parent == parent
        ]
        complete = [path for path in stages if (path / "complete").is_file()]
        return [
            files.read_json(path / "metrics.json")
            for path in sorted(complete, key=lambda path: int(path.name))
        ]

    @property
    def control(self) -> str:
        """The control that a search trains beside its rounds, or `none`."""
        return self.arguments.control if isinstance(self.arguments, Arguments) else "none"

    def is_done(self) -> bool:
        """True once nothing is left to do."""
        if self.lacks_network() or not (self.directory / "complete").is_file():
            return False
        return run_checks.seeds(self.arguments) <= {row["seed"] for row in self.seed_rows()}

    def lacks_network(self) -> bool:
        """True if the first seed was trained without keeping its network, which is needed now."""
        args = self.arguments
        network = self.path(Stage.seed(args.seed)) / "model/config.json"
        is_needed = isinstance(args, Transfer) and (args.push_to_hub or args.keep_network)
        return is_needed and not network.is_file()

    def mark_done(self) -> None:
        """Mark the run complete and unlock the directory."""
        files.write_bytes(self.directory / "complete", b"")
        locks.release(self.directory)

    def delete_network(self, stage: Stage) -> None:
        """Delete the trained weights of a stage that no later one needs."""
        if isinstance(self.arguments, Arguments) and self.arguments.rewind != "weights":
            (self.path(stage) / "weights.safetensors").unlink(missing_ok=True)
        # The listing is deleted last: until then it shows that files remain.
        listing.remove_listed(self.path(stage) / "model")

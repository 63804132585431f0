"""The output directory: the record of a run, from which the same command continues.

Written by the main process only and read by all, so it must be on a file system that all ranks
share.
"""

import os
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lth_scale.config import directories, files, manifest, run_files
from lth_scale.config.arguments import (
    Arguments,
    Training,
    Transfer,
    flags_with,
    same_value,
    with_current_names,
)
from lth_scale.config.errors import BadInput
from lth_scale.config.redaction import redacted
from lth_scale.config.resolution import launched_precision
from lth_scale.tasks.registry import adopt_metric
from lth_scale.tracking import provenance
from lth_scale.tracking.machine import git_commit, versions
from lth_scale.tracking.provenance import Facts
from lth_scale.tracking.stages import Row, Stage
from lth_scale.tracking.trackers import TRACKERS

PATIENCE = 45  # seconds; launchers give their processes 30 to stop
# What arguments.json of every version has.
REQUIRED = {"task", "model_name_or_path", "output_dir", "seed", "max_steps", "versions"}
# What a run writes into its directory.
NAMES = (
    *("arguments.json", "rounds", "seeds", "controls", "connectivity", "figures", "complete"),
    *("results.json", "controls.json", "connectivity.json", "ticket.safetensors", ".lock"),
    *("theta.safetensors", "theta-[0-9]*.safetensors", "mlflow.json", "mlflow.jsonl", "hub.json"),
    run_files.TEST_TABLE,
)


@dataclass(frozen=True)
class RunDirectory:
    """The files of one search or transfer in `directory`."""

    directory: Path
    arguments: Training

    @classmethod
    def open(cls, args: Training) -> "RunDirectory":
        """Open --output_dir. Raises BadInput if the run cannot start or continue there.

        Refuses another run, files that lth_scale did not write, links and damaged files. Changes
        nothing.
        """
        adopt_metric(args.as_dict())
        run_directory = cls(Path(args.output_dir), args)
        run_directory._check()
        return run_directory

    def _check(self) -> None:
        self._check_arguments()
        directory, lock = self.directory, self.directory / ".lock"
        if os.path.lexists(lock) and not directories.is_lock(lock):
            raise self._refusal(".lock was not written by lth_scale; move it away")
        if link := run_files.find_link(directory):
            raise self._refusal(
                f"{link.relative_to(directory)} is a link, and files in its target would be "
                "changed; replace it with the directory itself"
            )
        TRACKERS[self.arguments.report_to].check(directory)
        try:
            run_files.check_whole(directory)
        except ValueError as error:
            why = f"{error}; restore a copy of it, or use another directory"
            raise self._refusal(why) from None
        with directories.must_be_writable(f"--output_dir {directory}"):
            directories.check_writable(directory)

    def saved_arguments(self) -> Facts:
        """Return arguments.json of when the run began, or {} before. Raises BadInput if damaged."""
        try:
            saved = with_current_names(files.read_json(self.directory / "arguments.json"))
            provenance.check_types(saved)
            return saved
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise self._refusal(
                "arguments.json is damaged; restore a copy of it, or use another directory"
            ) from error

    def check_facts(self, facts: Facts) -> None:
        """Raise BadInput if the run began with other facts of `provenance`."""
        if differences := provenance.differences(self.saved_arguments(), facts):
            raise self._refusal(
                f"holds another run ({'; '.join(differences)}); restore what it was started with "
                "to continue it, or use another directory"
            )

    def notices(self, facts: Facts) -> list[str]:
        """Describe what changed since the run began, or was not recorded then; a line each."""
        if not (saved := self.saved_arguments()):
            return []
        changes = provenance.changes(saved, {**facts, "versions": versions()})
        names = ("digests", *facts, *self.arguments.as_dict())
        return changes + provenance.not_recorded(saved, names)

    def begin(self, facts: Facts) -> None:
        """Lock the directory and write arguments.json, after all checks. Raises BadInput.

        facts: what results depend on besides flags, digests and versions. Waits for a process
        that is about to stop.
        """
        deadline = time.monotonic() + PATIENCE
        while owner := directories.acquire(self.directory):
            if time.monotonic() > deadline:
                raise self._refusal(f"{owner} is running there; wait for it, or stop it")
            time.sleep(0.5)
        run_files.delete_unfinished(self.directory)
        path = self.directory / "arguments.json"
        if path.exists():  # perhaps written by another process since the first check
            self._check_arguments()
            return
        inputs = {"digests": provenance.digests(self.arguments), **facts}
        code = {"versions": versions(), "git_commit": git_commit()}
        files.write_json(path, {**redacted(self.arguments.as_saved()), **inputs, **code})

    def _check_arguments(self) -> None:
        """Raise BadInput if the directory holds another run, or files that no run wrote."""
        args, path = self.arguments, self.directory / "arguments.json"
        saved = self.saved_arguments() if os.path.lexists(path) else {}
        if not saved.keys() >= REQUIRED or not saved["versions"].get("lth_scale"):
            self._check_names()
            return
        if ("seeds" in saved) != isinstance(args, Transfer):
            raise self._refusal("holds a run of another command; use another directory")
        digests = provenance.digests(args)
        may_differ = {*flags_with("cosmetic"), *provenance.flags_with_digests(saved, digests)}
        if isinstance(args, Transfer):
            may_differ.add("seed")  # the first of --seeds, which may change
        if "precision" not in saved:
            may_differ |= launched_precision().keys()  # the launcher's was not recorded
        if args.model_revision == saved.get("revisions", {}).get("model", ""):
            may_differ.add("model_revision")  # the commit that the earlier value stood for
        differences = [
            f"--{name} was {saved[name]}, is {value}"
            for name, value in redacted(args.as_dict()).items()
            if name in saved.keys() - may_differ
            and not same_value(name, redacted(saved[name]), value)
        ]
        if differences:
            raise self._refusal(
                f"holds another run ({'; '.join(differences)}); use the same flags to continue "
                "it, or another directory"
            )
        self.check_facts({"digests": digests})

    def _check_names(self) -> None:
        names = sorted(os.listdir(self.directory)) if self.directory.is_dir() else []
        taken = [name for name in names if any(fnmatch(name, pattern) for pattern in NAMES)]
        if ".lock" in taken and directories.is_lock(self.directory / ".lock"):
            taken.remove(".lock")
        if taken:
            raise self._refusal(
                f"holds {taken[0]}, which was not written by this run; use another directory"
            )

    def _refusal(self, why: str) -> BadInput:
        return BadInput(f"--output_dir {self.directory}: {why}")

    def path(self, stage: Stage) -> Path:
        """Return the directory of a stage."""
        return self.directory / stage.path

    def is_complete(self, stage: Stage) -> bool:
        """True once everything about the stage is on disk."""
        return (self.path(stage) / "complete").is_file()

    def complete(self, stage: Stage, row: Row) -> None:
        """Write metrics.json of a stage, `row`, and the table of its kind; mark it complete."""
        directory = self.path(stage)
        files.write_json(directory / "metrics.json", row)
        others = [other for other in self._rows(stage) if other[stage.key] != row[stage.key]]
        table = sorted([*others, row], key=lambda entry: entry[stage.key])
        files.write_json(self.directory / stage.table, table)
        files.write_bytes(directory / "complete", b"")

    def round_rows(self) -> list[Row]:
        """Return metrics.json of the complete rounds, in order."""
        return self._rows(Stage.round(0))

    def control_rows(self) -> list[Row]:
        """Return metrics.json of the complete controls of a search, in order."""
        return self._rows(Stage.round(0, self.control)) if self.control != "none" else []

    def seed_rows(self) -> list[Row]:
        """Return metrics.json of the complete seeds of a transfer, in order."""
        return self._rows(Stage.seed(0))

    def all_rows(self) -> list[Row]:
        """Return metrics.json of all complete stages."""
        return [*self.round_rows(), *self.seed_rows(), *self.control_rows()]

    def _rows(self, kind: Stage) -> list[Row]:
        stages = [
            stage
            for stage in run_files.stage_directories(self.directory)
            if stage.parent == self.path(kind).parent and (stage / "complete").is_file()
        ]
        stages.sort(key=lambda stage: int(stage.name))
        return [files.read_json(stage / "metrics.json") for stage in stages]

    @property
    def control(self) -> str:
        """The control that a search trains beside its rounds, or `none`."""
        return self.arguments.control if isinstance(self.arguments, Arguments) else "none"

    def is_done(self) -> bool:
        """True once nothing is left to do."""
        if self.lacks_network() or not (self.directory / "complete").is_file():
            return False
        seeds = {*self.arguments.seeds} if isinstance(self.arguments, Transfer) else set()
        return seeds <= {row["seed"] for row in self.seed_rows()}

    def lacks_network(self) -> bool:
        """True if the first seed was trained without keeping its network, which is needed now."""
        args = self.arguments
        is_needed = isinstance(args, Transfer) and (args.push_to_hub or args.keep_network)
        network = self.path(Stage.seed(args.seed)) / "model/config.json"
        return is_needed and not network.is_file()

    def mark_done(self) -> None:
        """Mark the run complete and unlock the directory."""
        files.write_bytes(self.directory / "complete", b"")
        directories.release(self.directory)

    def delete_network(self, stage: Stage) -> None:
        """Delete the trained weights of a stage that no later one needs."""
        if isinstance(self.arguments, Arguments) and self.arguments.rewind != "weights":
            (self.path(stage) / "weights.safetensors").unlink(missing_ok=True)
        # The listing is deleted last: until then it shows that files remain.
        manifest.remove_listed(self.path(stage) / "model")

"""The output directory: what a search has done, so that running it again goes on where it stopped.

Written by the main process alone; read by all, so it lies on a file system that all ranks share.
"""

import os
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from lth_scale.config import files, listing, locks, run_files
from lth_scale.config.arguments import Arguments, Training, Transfer, flags_with, same_value
from lth_scale.config.errors import BadInput
from lth_scale.config.redaction import redacted, without_secrets
from lth_scale.config.resolution import launched_precision
from lth_scale.tracking import journal, provenance
from lth_scale.tracking.mlflow import stores, variables
from lth_scale.tracking.stages import Stage
from lth_scale.tracking.versions import git_commit, versions

PATIENCE = 45  # seconds; a launcher gives its processes 30 to stop in
# What arguments.json of every version has.
CORE = {"task", "model_name_or_path", "output_dir", "seed", "max_steps", "versions"}
# What a run writes into its directory.
NAMES = (
    *(
        "arguments.json",
        "rounds",
        "seeds",
        "controls",
        "connectivity",
        "figures",
        "complete",
        ".lock",
    ),
    *(
        "results.json",
        "controls.json",
        "connectivity.json",
        "ticket.safetensors",
        "theta.safetensors",
    ),
    *("theta-[0-9]*.safetensors", "mlflow.json", "mlflow.jsonl", "hub.json"),
)
# What a tracking store's URL may begin with, beside what plugins add; MLflow 3.17 has given up files.
STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


@dataclass(frozen=True)
class RunDirectory:
    """The files of one search or transfer below `directory`."""

    directory: Path
    arguments: Training

    @classmethod
    def open(cls, args: Training) -> "RunDirectory":
        """The record of --output_dir. Raises BadInput where it holds another search or cannot be written."""
        record = cls(Path(args.output_dir), args)
        record._refuse_other_arguments()
        record._refuse_lock_and_links()
        if args.report_to == "mlflow":
            variables.check()
            record._refuse_unknown_store()
            record._refuse_unusable_store()
            record._refuse_unusable_journals()
        try:
            run_files.check_whole(record.directory)
        except ValueError as problem:
            raise BadInput(
                f"--output_dir {args.output_dir}: {problem}; put back a copy of it, or give another directory"
            ) from None
        try:
            files.check_writable(record.directory)
        except OSError as problem:
            raise BadInput(
                f"--output_dir {args.output_dir}: cannot be written ({problem.strerror}); give another"
            ) from None
        return record

    def _refuse_unknown_store(self) -> None:
        store = self.mlflow_store()
        scheme, mark, _ = store.partition("://")
        known = (*STORES, *entry_points(group="mlflow.tracking_store").names)
        if store == "databricks" or (mark and scheme.split("+")[0] in known):
            return
        raise BadInput(
            f"MLFLOW_TRACKING_URI {without_secrets(store)}: is no store that MLflow knows; give http://HOST:5000 or "
            "sqlite:///FILE, or --report_to none"
        )

    def _refuse_unusable_store(self) -> None:
        store = self.mlflow_store()
        path = stores.database(store)
        given = os.environ.get("MLFLOW_TRACKING_URI")
        name = (
            f"MLFLOW_TRACKING_URI {without_secrets(given)}" if given else f"the MLflow store {path}"
        )
        try:
            if path:
                stores.check(path)
            elif not stores.has_host(store):
                raise ValueError("names no host and port")
            if path and given:
                files.check_writable(path.parent)
        except (OSError, ValueError) as problem:
            why = (
                f"cannot be written ({problem.strerror})"
                if isinstance(problem, OSError)
                else problem
            )
            raise BadInput(
                f"{name}: {why}; give MLFLOW_TRACKING_URI=sqlite:///FILE or http://HOST:5000, or --report_to none"
            ) from None

    def _refuse_unusable_journals(self) -> None:
        for path in self.journals():
            try:
                journal.check(path)
            except (OSError, ValueError) as problem:
                raise BadInput(
                    f"{path}: {problem}; move it away, or give --report_to none"
                ) from None

    def _refuse_other_arguments(self) -> None:
        path = self.directory / "arguments.json"
        if not os.path.lexists(path):
            return self._refuse_names_of_others()
        before = self.begun()
        if not before.keys() >= CORE or not before["versions"].get("lth_scale"):
            return self._refuse_names_of_others()
        if ("seeds" in before) != isinstance(self.arguments, Transfer):
            raise BadInput(
                f"--output_dir {self.directory}: its arguments.json is another command's; give another directory"
            )
        digests = provenance.digests(self.arguments)
        compared = before.keys() - self._loose(before) - provenance.told_by_content(before, digests)
        differ = [
            f"--{name} was {before[name]}, is {now}"
            for name, now in redacted(self.arguments.as_dict()).items()
            if name in compared and not same_value(name, redacted(before[name]), now)
        ]
        if differ:
            raise BadInput(
                f"--output_dir {self.directory}: holds another run ({'; '.join(differ)}); "
                "use the same flags to go on, or another directory"
            )
        self.refuse_other({"digests": digests})

    def _refuse_lock_and_links(self) -> None:
        lock = self.directory / ".lock"
        if os.path.lexists(lock) and not locks.is_lock(lock):
            raise BadInput(
                f"--output_dir {self.directory}: its .lock is none of ours; move it away"
            )
        if link := run_files.link_in(self.directory):
            raise BadInput(
                f"--output_dir {self.directory}: {link.relative_to(self.directory)} is a link, and what it leads to "
                "would be written and deleted; put the directory itself there"
            )

    def _refuse_names_of_others(self) -> None:
        """Raise BadInput where a new run would write a name that is there already: it is somebody else's."""
        there = sorted(os.listdir(self.directory)) if self.directory.is_dir() else []
        taken = [name for name in there if any(fnmatch(name, form) for form in NAMES)]
        if ".lock" in taken and locks.is_lock(self.directory / ".lock"):
            taken.remove(".lock")
        if taken:
            raise BadInput(
                f"--output_dir {self.directory}: holds {taken[0]}, which a run writes and this one did not make; "
                "give another directory"
            )

    def _loose(self, before: dict[str, Any]) -> set[str]:
        """The flags that may be others than before, or of which it is not known what they were."""
        loose = {*flags_with("cosmetic"), *(("seed",) if self._wanted() else ())}
        if "precision" not in before:
            loose |= launched_precision().keys()  # the launcher's was not written down
        if self.arguments.model_revision == before.get("revisions", {}).get("model", ""):
            loose.add("model_revision")  # its name now is the commit that it was then
        return loose

    def begun(self) -> dict[str, Any]:
        """arguments.json as the run wrote it when it began, or {} before that. Raises BadInput where it is damaged."""
        path = self.directory / "arguments.json"
        try:
            before = {**files.read_json(path)}
            provenance.check_kinds(before)
            return before
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, RecursionError) as problem:
            raise BadInput(
                f"--output_dir {self.directory}: its arguments.json is damaged; put back a copy of it, or give another"
            ) from problem

    def refuse_other(self, facts: dict[str, Any]) -> None:
        """Raise BadInput where the run began with other facts of `provenance` than these."""
        differ = provenance.differences(self.begun(), facts)
        if differ:
            raise BadInput(
                f"--output_dir {self.directory}: holds another run ({'; '.join(differ)}); "
                "go on with what it began with, or in another directory"
            )

    def remarks(self, facts: dict[str, Any]) -> list[str]:
        """Lines on what a run goes on with that is another, or not known to be the same; none where it begins."""
        if not (before := self.begun()):
            return []
        names = ("digests", *facts, *self.arguments.as_dict())
        return provenance.news(before, {**facts, "versions": versions()}) + provenance.unknown(
            before, names
        )

    def begin(self, facts: dict[str, Any]) -> None:
        """Claim the directory and write arguments.json, once everything has been found usable. Raises BadInput.

        facts: what the run depends on beside flags, digests and versions. A process that is being stopped is waited
        for.
        """
        began = time.monotonic()
        while other := locks.claim(self.directory):
            if time.monotonic() - began > PATIENCE:
                raise BadInput(
                    f"--output_dir {self.directory}: {other} works there; wait for it, or stop it"
                )
            time.sleep(0.5)
        run_files.sweep(self.directory)
        path = self.directory / "arguments.json"
        if path.exists():
            self._refuse_other_arguments()  # another process may have begun there since they were looked at
        else:
            known = {"digests": provenance.digests(self.arguments), **facts}
            made_by = {"versions": versions(), "git_commit": git_commit()}
            files.write_json(path, {**redacted(self.arguments.as_saved()), **known, **made_by})

    def at(self, stage: Stage) -> Path:
        """The directory of a stage."""
        return self.directory / stage.room / f"{stage.number:02d}"

    def is_complete(self, stage: Stage) -> bool:
        """True once everything about the stage is on disk."""
        return (self.at(stage) / "complete").is_file()

    def complete(self, stage: Stage, row: dict[str, Any]) -> None:
        """Write the stage's metrics and the table of all stages of its kind, then mark it complete."""
        directory = self.at(stage)
        files.write_json(directory / "metrics.json", row)
        table = "controls.json" if stage.room.startswith("controls/") else "results.json"
        key = "seed" if stage.room == "seeds" else "round"
        others = [other for other in self.rows(stage.room) if other[key] != row[key]]
        files.write_json(self.directory / table, sorted([*others, row], key=lambda each: each[key]))
        files.write_bytes(directory / "complete", b"")

    def rows(self, room: str = "rounds") -> list[dict[str, Any]]:
        """metrics.json of every complete stage of a kind, in order."""
        homes = [
            path
            for path in run_files.stages(self.directory)
            if path.parent == self.directory / room
        ]
        done = [path for path in homes if (path / "complete").is_file()]
        return [
            files.read_json(path / "metrics.json")
            for path in sorted(done, key=lambda p: int(p.name))
        ]

    def all_rows(self) -> list[dict[str, Any]]:
        """The rows of every kind."""
        return [
            row
            for room in ("rounds", "seeds", f"controls/{self.control}")
            for row in self.rows(room)
        ]

    @property
    def control(self) -> str:
        """The control that a search trains beside its rounds, or `none`."""
        return self.arguments.control if isinstance(self.arguments, Arguments) else "none"

    def is_done(self) -> bool:
        """True once nothing is left to do."""
        done = (self.directory / "complete").is_file() and not self.lacks_network()
        return done and self._wanted() <= {row["seed"] for row in self.rows("seeds")}

    def lacks_network(self) -> bool:
        """True where a transfer was trained without keeping its first seed's network, which is wanted now."""
        args, first = (
            self.arguments,
            self.directory / f"seeds/{self.arguments.seed:02d}/model/config.json",
        )
        return (
            isinstance(args, Transfer)
            and (args.push_to_hub or args.keep_network)
            and not first.is_file()
        )

    def _wanted(self) -> set[int]:
        return set(getattr(self.arguments, "seeds", ()))

    def mark_done(self) -> None:
        """Say that nothing is left to do, and leave the directory to others."""
        files.write_bytes(self.directory / "complete", b"")
        locks.release(self.directory)

    def drop_networks(self, stage: Stage) -> None:
        """Delete the trained weights of a stage that no later one needs."""
        if isinstance(self.arguments, Arguments) and self.arguments.rewind != "weights":
            (self.at(stage) / "weights.safetensors").unlink(missing_ok=True)
        listing.remove_listed(
            self.at(stage) / "model"
        )  # its list goes last, and says until then that there is more

    def mlflow_store(self) -> str:
        """MLFLOW_TRACKING_URI, or the embedded store beside the output directory."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self._embedded_store

    @cached_property
    def _embedded_store(self) -> str:
        return stores.beside(self.directory)

    def journals(self) -> list[Path]:
        """The journals of MLflow's records that there are: one of a search, one of each seed of a transfer."""
        places = [self.directory, *sorted(self.directory.glob("seeds/*"))]
        return [
            place / "mlflow.jsonl" for place in places if os.path.lexists(place / "mlflow.jsonl")
        ]

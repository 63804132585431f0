"""The output directory: what a search has done, so that running it again goes on where it stopped.

Written by the main process alone; read by all, so it lies on a file system that all ranks share.
"""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lth_scale import files
from lth_scale.arguments import COSMETIC, Arguments, BadInput

PACKAGES = ("lth_scale", "torch", "transformers", "accelerate", "deepspeed", "datasets", "mlflow", "safetensors")


@dataclass(frozen=True)
class Record:
    """The files of one search below `directory`. Rounds are numbered from 0, the dense network."""

    directory: Path
    arguments: Arguments

    @classmethod
    def open(cls, args: Arguments) -> "Record":
        """The record of --output_dir. Raises BadInput where it holds another search or cannot be written."""
        record = cls(Path(args.output_dir), args)
        record._refuse_other_arguments()
        try:
            with tempfile.TemporaryDirectory(dir=record._nearest_directory()) as probe:
                Path(probe, "file").touch()
        except OSError as problem:
            raise BadInput(f"--output_dir {args.output_dir}: cannot be written ({problem}); give another") from None
        return record

    def _nearest_directory(self) -> Path:
        """The output directory, or while it does not exist the one that it will be made in."""
        return next(path for path in (self.directory, *self.directory.resolve().parents) if path.exists())

    def _refuse_other_arguments(self) -> None:
        path = self.directory / "arguments.json"
        if not path.is_file():
            taken = [
                name for name in ("rounds", "results.json", "ticket.safetensors") if (self.directory / name).exists()
            ]
            if taken:
                raise BadInput(
                    f"--output_dir {self.directory}: holds {taken[0]} but no arguments.json, so it is not known whose; "
                    "give another directory"
                )
            return
        try:
            before = json.loads(path.read_text())
            before = {name: before[name] for name in self.arguments.as_dict()}
        except (OSError, ValueError, KeyError, TypeError):
            raise BadInput(f"--output_dir {self.directory}: its arguments.json is damaged; give another") from None
        now = self.arguments.as_dict()
        differ = [
            f"--{name} was {before[name]}, is {now[name]}"
            for name in now
            if before[name] != now[name] and name not in COSMETIC
        ]
        if differ:
            raise BadInput(
                f"--output_dir {self.directory}: holds another search ({'; '.join(differ)}); "
                "use the same flags to go on, or another directory"
            )

    def begin(self) -> None:
        """Write arguments.json, once everything has been found usable."""
        path = self.directory / "arguments.json"
        if not path.exists():
            files.write_json(path, {**self.arguments.as_dict(), "versions": versions(), "git_commit": git_commit()})

    def round(self, number: int, control: str = "none") -> Path:
        """The directory of a round, or of the control trained at that round's sparsity."""
        parent = self.directory / ("rounds" if control == "none" else f"controls/{control}")
        return parent / f"{number:02d}"

    def is_complete(self, number: int, control: str = "none") -> bool:
        """True once everything about the round is on disk."""
        return (self.round(number, control) / "complete").is_file()

    def complete(self, row: dict[str, Any], control: str = "none") -> None:
        """Write the round's metrics and the table of all rounds, then mark the round complete."""
        directory = self.round(row["round"], control)
        files.write_json(directory / "metrics.json", row)
        files.write_json(
            self.directory / ("results.json" if control == "none" else "controls.json"),
            [*(r for r in self.rows(control) if r["round"] != row["round"]), row],
        )
        files.write_bytes(directory / "complete", b"")

    def rows(self, control: str = "none") -> list[dict[str, Any]]:
        """metrics.json of every complete round, in order."""
        directories = sorted(self.round(0, control).parent.glob("[0-9]*"))
        done = [directory for directory in directories if (directory / "complete").is_file()]
        return [json.loads((directory / "metrics.json").read_text()) for directory in done]

    def all_rows(self) -> list[dict[str, Any]]:
        """The rows of the rounds and of the control."""
        control = self.arguments.control
        return [*self.rows(), *(self.rows(control) if control != "none" else [])]

    def is_done(self) -> bool:
        """True once the search and its comparison are finished."""
        return (self.directory / "complete").is_file()

    def mark_done(self) -> None:
        """Say that nothing is left to do."""
        files.write_bytes(self.directory / "complete", b"")

    def drop_networks(self, number: int) -> None:
        """Delete the trained weights of a round that no later round needs."""
        shutil.rmtree(self.round(number) / "model", ignore_errors=True)
        (self.round(number) / "weights.safetensors").unlink(missing_ok=True)

    def mlflow_store(self) -> str:
        """MLFLOW_TRACKING_URI, or the embedded store beside the output directory."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.directory.resolve().parent / 'mlflow.db'}"


def versions() -> dict[str, str | None]:
    """Installed versions of what decides a result."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """The commit of this package's checkout, or None where it is installed from a wheel."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here.parent), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        top, commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return commit if Path(top).resolve() == here.parent else None

"""How far a journal was delivered, and which MLflow runs it became: `mlflow.json`."""

import json
import os
import stat
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from lth_scale.config import files


@dataclass
class Progress:
    """The progress of a journal's delivery to one store.

    sent: the byte offset up to which records are known to be delivered.
    experiment: the id of the experiment, once it is known. runs: run ids by stage, and `parent`.
    """

    store: str
    sent: int = 0
    experiment: str = ""
    runs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Progress | None":
        """Read mlflow.json; None if it is missing, damaged or was not written by lth_scale."""
        try:
            fields = json.loads(path.read_text()) if stat.S_ISREG(os.lstat(path).st_mode) else {}
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(fields, dict) or "store" not in fields:
            return None
        sent = fields.pop("sent", -1)
        if type(sent) is not int or not all(isinstance(value, str) for value in fields.values()):
            return None
        return cls(fields.pop("store"), sent, fields.pop("experiment", ""), fields)

    def write(self, path: Path) -> None:
        """Write mlflow.json."""
        experiment = {"experiment": self.experiment} if self.experiment else {}
        files.write_json(path, {"store": self.store, "sent": self.sent, **experiment, **self.runs})


def quarantine(path: Path) -> Path | None:
    """Rename a file that `Progress.read` rejects and return its new name; None if it is valid."""
    if not os.path.lexists(path) or Progress.read(path):
        return None
    names = (path.with_name(f"{path.name}.{number}") for number in count(1))
    unused = next(name for name in names if not os.path.lexists(name))
    path.rename(unused)
    return unused

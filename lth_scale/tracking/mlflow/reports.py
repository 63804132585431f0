"""Reports as MLflow runs."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric

from lth_scale.config.markdown import clean
from lth_scale.config.redaction import without_secrets
from lth_scale.tracking.mlflow import variables
from lth_scale.tracking.mlflow.connection import NOTE, connect, link
from lth_scale.tracking.mlflow.models import register

NOTE_LENGTH = 7500  # of the 8,000 characters that a tag may have


def log_report(
    store: str,
    name: str,
    paths: Sequence[Path],
    kind: str = "study",
    metrics: Mapping[str, float] | None = None,
    verdicts: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Keep a report's files as artifacts of the run `report · NAME`, the same one every time, and its numbers there.

    verdicts: what `register` takes, one a task and rule.
    """
    client, experiment = connect(store)
    name = clean(without_secrets(name))
    title = f"report · {name}"
    runs = client.search_runs([experiment], f"tags.report = '{kind}'")
    same = [run.info.run_id for run in runs if run.info.run_name == title]
    tags = variables.tags() | {"report": kind}
    run = same[0] if same else client.create_run(experiment, tags=tags, run_name=title).info.run_id
    for path in paths:
        client.log_artifact(run, str(path))
        if path.suffix == ".md":
            client.set_tag(run, NOTE, as_note(path.read_text(), run))
    client.set_tag(run, "curve", title)
    for verdict in verdicts:
        register(client, experiment, name, **verdict)
    now = int(time.time() * 1000)
    points = [Metric(key, value, now, 0) for key, value in (metrics or {}).items()]
    for start in range(0, len(points), 1000):
        client.log_batch(run, metrics=points[start : start + 1000])
    client.set_terminated(run)


def as_note(text: str, run: str) -> str:
    """Markdown for the page of a run that has its pictures as artifacts: as many sections as MLflow takes."""
    text = re.sub(r"(?<!\\)\]\((?!http)([^)]+)\)", lambda found: f"]({link(run, found[1])})", text)
    kept, rest = "", "\n\n… the rest is in report.html, under Artifacts."
    for part in re.split(r"(?m)^(?=#{1,3} )", text):
        if len(kept) + len(part) + len(rest) > NOTE_LENGTH:
            return kept + rest
        kept += part
    return kept

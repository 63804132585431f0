"""Reports as MLflow runs."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric

from lth_scale.config.markdown import clean
from lth_scale.config.redaction import without_secrets
from lth_scale.tracking.mlflow import variables
from lth_scale.tracking.mlflow.connection import NOTE, connect, link
from lth_scale.tracking.mlflow.models import register
from lth_scale.tracking.mlflow.registration import Registration
from lth_scale.tracking.mlflow.runs import MOST_POINTS

NOTE_LENGTH = 7500  # of the 8,000 characters that a tag may have


def log_report(
    store: str,
    name: str,
    paths: Sequence[Path],
    kind: str = "study",
    metrics: Mapping[str, float] | None = None,
    registrations: Sequence[Registration] = (),
) -> None:
    """Log a report's files and metrics to the run `report · NAME`, which is reused.

    kind: `study` or `speed`. registrations: for the model registry.
    """
    client, experiment = connect(store)
    name = clean(without_secrets(name))
    title = f"report · {name}"
    known = client.search_runs([experiment], f"tags.report = '{kind}'")
    runs = [run for run in known if run.info.run_name == title]
    if not runs:
        tags = variables.tags() | {"report": kind}
        runs = [client.create_run(experiment, tags=tags, run_name=title)]
    run = runs[0].info.run_id
    for path in paths:
        client.log_artifact(run, str(path))
        if path.suffix == ".md":
            client.set_tag(run, NOTE, as_note(path.read_text(), run))
    client.set_tag(run, "curve", title)
    for registration in registrations:
        register(client, experiment, name, registration)
    now = int(time.time() * 1000)
    points = [Metric(key, value, now, 0) for key, value in (metrics or {}).items()]
    for start in range(0, len(points), MOST_POINTS):
        client.log_batch(run, metrics=points[start : start + MOST_POINTS])
    client.set_terminated(run)


def as_note(text: str, run: str) -> str:
    """Return a report as the note of its run: as many sections as MLflow stores.

    Pictures are linked to the run's artifacts.
    """
    text = re.sub(r"(?<!\\)\]\((?!http)([^)]+)\)", lambda path: f"]({link(run, path[1])})", text)
    note, rest = "", "\n\n… the rest is in report.html, under Artifacts."
    for section in re.split(r"(?m)^(?=#{1,3} )", text):
        if len(note) + len(section) + len(rest) > NOTE_LENGTH:
            return note + rest
        note += section
    return note

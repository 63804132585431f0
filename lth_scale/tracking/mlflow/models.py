"""Tickets as logged and registered models."""

import re
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from safetensors import safe_open

from lth_scale.config.markdown import literal
from lth_scale.tracking.mlflow.connection import all_pages


def header(path: Path) -> dict[str, str]:
    """What a ticket file says of itself, without its masks."""
    with safe_open(path, "numpy") as file:
        return file.metadata()


def describe_ticket(path: Path, seed: int) -> dict[str, str]:
    """A ticket as the parameters of a logged model."""
    kept = (
        "task",
        "base_model",
        "base_revision",
        "sparsity",
        "pruned",
        "prunable",
        "theta_sha256",
        "content_sha256",
    )
    found = {"base_sha256": "", **header(path)}
    return {
        **{name: found[name] for name in (*kept, "base_sha256")},
        "seed": str(seed),
        "file": str(path.resolve()),
    }


def model_of(
    client: MlflowClient, experiment: str, ticket: Mapping[str, str], run: str | None = None
) -> str:
    """The id of the logged model that stands for a ticket (of one round's run), made where there is none."""
    same = f"tags.content_sha256 = '{ticket['content_sha256']}'"
    models = [
        each
        for each in all_pages(client.search_logged_models, [experiment], same)
        if run in (None, each.source_run_id) and each.tags.get("file") == ticket["file"]
    ]
    if not models:
        name = f"{ticket['task']}-seed{ticket['seed']}-{100 * float(ticket['sparsity']):.4g}pct".replace(
            ".", "_"
        )
        tags = {**ticket, "mlflow.model.isExternal": "true"}
        models = [
            client.create_logged_model(experiment, name, run, tags, dict(ticket), "lottery ticket")
        ]
    if models[0].status != "READY":
        client.finalize_logged_model(models[0].model_id, "READY")
    return models[0].model_id


def register(
    client: MlflowClient,
    experiment: str,
    study: str,
    rule: str,
    text: str,
    task: str,
    base: str,
    ticket: Path | None,
    seed: int,
) -> None:
    """Give the alias `matches-RULE` to the version of `BASE-TASK-ticket` that is `ticket`; to none where that is None.

    text: the verdict in words, kept as a tag of the version.
    """
    name = (
        re.sub(r"""['"/:]""", "-", Path(base).name) + f"-{task}-ticket"
    )  # what neither names nor filters may hold
    alias = f"matches-{rule}"
    known = client.search_registered_models(f"name = '{name}'")
    versions = client.search_model_versions(f"name = '{name}'")
    for old in versions:
        client.delete_model_version_tag(name, old.version, alias)
        explain(client, name, old.version)
    if not ticket:
        if known and alias in known[0].aliases:
            client.delete_registered_model_alias(name, alias)
        return
    if not known:
        client.create_registered_model(name, {"task": task, "base_model": base})
    model = client.get_logged_model(model_of(client, experiment, describe_ticket(ticket, seed)))
    source, run = model.artifact_location, model.source_run_id
    same = [each for each in versions if each.source == source]
    its = model.model_id if run else None  # without a run MLflow looks for it in another store
    made = same or [client.create_model_version(name, source, run, model_id=its)]
    version = made[0].version
    for key, value in {alias: text, "study": study, "seed": model.params["seed"]}.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, alias, version)
    explain(client, name, version)


def explain(client: MlflowClient, name: str, version: str) -> None:
    """Say in a version's description under which rules it matches, with the numbers."""
    tags = sorted(client.get_model_version(name, version).tags.items())
    why = [literal(f"{key}: {value}") for key, value in tags if key.startswith("matches-")]
    client.update_model_version(
        name, version, "\n\n".join(why) or "matches under no rule of the last report"
    )

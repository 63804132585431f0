"""Tickets as logged and registered models."""

import re
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from lth_scale.config.markdown import literal
from lth_scale.tracking.mlflow.connection import all_pages
from lth_scale.tracking.mlflow.registration import Registration
from lth_scale.tracking.mlflow.tickets import describe_ticket

TYPE = "lottery ticket"


def logged_model(
    client: MlflowClient, experiment: str, ticket: Mapping[str, str], run: str | None = None
) -> str:
    """Return the id of the logged model of a ticket, which is created if needed.

    ticket: as `describe_ticket` describes it. run: the run of its round, if that matters.
    """
    condition = f"tags.content_sha256 = '{ticket['content_sha256']}'"
    models = [
        model
        for model in all_pages(client.search_logged_models, [experiment], condition)
        if run in (None, model.source_run_id) and model.tags.get("file") == ticket["file"]
    ]
    if not models:
        percent = f"{100 * float(ticket['sparsity']):.4g}".replace(".", "_")
        name = f"{ticket['task']}-seed{ticket['seed']}-{percent}pct"
        tags = {**ticket, "mlflow.model.isExternal": "true"}
        models = [client.create_logged_model(experiment, name, run, tags, dict(ticket), TYPE)]
    if models[0].status != "READY":
        client.finalize_logged_model(models[0].model_id, "READY")
    return models[0].model_id


def register(client: MlflowClient, experiment: str, study: str, entry: Registration) -> None:
    """Move the alias `matches-RULE` of the model `BASE-TASK-ticket` to the ticket that matches.

    The verdict becomes a tag of its version. Without a ticket the alias is deleted.
    """
    # Model names and filters do not accept quotes, slashes and colons.
    name = re.sub(r"""['"/:]""", "-", Path(entry.base).name) + f"-{entry.task}-ticket"
    alias = f"matches-{entry.rule}"
    models = client.search_registered_models(f"name = '{name}'")
    versions = client.search_model_versions(f"name = '{name}'")
    for old in versions:
        client.delete_model_version_tag(name, old.version, alias)
        describe_version(client, name, old.version)
    if not entry.ticket:
        if models and alias in models[0].aliases:
            client.delete_registered_model_alias(name, alias)
        return
    if not models:
        tags = {"task": entry.task, "base_model": entry.base}
        client.create_registered_model(name, tags)
    ticket = describe_ticket(entry.ticket, entry.seed)
    version = model_version(client, name, versions, logged_model(client, experiment, ticket))
    for key, value in {alias: entry.text, "study": study, "seed": ticket["seed"]}.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, alias, version)
    describe_version(client, name, version)


def model_version(
    client: MlflowClient, name: str, versions: list[ModelVersion], model_id: str
) -> str:
    """Return the version of a registered model that is a logged model; created if needed."""
    model = client.get_logged_model(model_id)
    for version in versions:
        if version.source == model.artifact_location:
            return version.version
    run = model.source_run_id
    # Without a run, MLflow would look for the model's id in another store.
    return client.create_model_version(
        name, model.artifact_location, run, model_id=model_id if run else None
    ).version


def describe_version(client: MlflowClient, name: str, version: str) -> None:
    """List in a version's description the rules under which it matches, with the numbers."""
    tags = sorted(client.get_model_version(name, version).tags.items())
    lines = [literal(f"{key}: {value}") for key, value in tags if key.startswith("matches-")]
    description = "\n\n".join(lines) or "matches under no rule of the last report"
    client.update_model_version(name, version, description)

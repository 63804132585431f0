"""Tickets as logged and registered models. Does not import torch or MLflow."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale.config.markdown import literal
from lth_scale.config.resolution import header_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

KEYS = (
    *("task", "base_model", "base_revision", "sparsity", "pruned", "prunable"),
    *("theta_sha256", "content_sha256", "base_sha256"),
)
TYPE = "lottery ticket"
ALIAS = "matches"
NO_MATCH = "no match in the last report"
# Of version 0.1.0, one alias and one tag of a version for each rule.
OLD_ALIASES = tuple(
    f"{ALIAS}-{rule}" for rule in ("strict", "within_sd_full", "within_sd_max", "welch", "paired")
)


@dataclass(frozen=True)
class Registration:
    """The ticket of a task that matches the full network, to be registered under the alias.

    base: the base model. text: the verdict in words. ticket: None if no ticket matches.
    """

    task: str
    base: str
    text: str
    ticket: Path | None
    seed: int


def describe_ticket(path: Path, seed: int) -> dict[str, str]:
    """Return a ticket's metadata, seed and file as the parameters of a logged model."""
    fields = {"base_sha256": "", **header_of(str(path))}
    return {**{name: fields[name] for name in KEYS}, "seed": str(seed), "file": str(path.resolve())}


def all_pages(search: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return the results of a client's search from all pages."""
    page = search(*arguments)
    results = list(page)
    while page.token:
        page = search(*arguments, page_token=page.token)
        results += page
    return results


def logged_model(
    client: "MlflowClient", experiment: str, ticket: Mapping[str, str], run: str | None = None
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


def register(client: "MlflowClient", experiment: str, study: str, entry: Registration) -> None:
    """Move the alias `matches` of the model `BASE-TASK-ticket` to the ticket that matches.

    The verdict becomes a tag and the description of its version. Without a ticket the alias is
    deleted if this study set it. The aliases `matches-RULE` that an earlier version set for this
    study are deleted, and versions of other studies stay as they are.
    """
    # Model names and filters do not accept quotes, slashes and colons.
    name = re.sub(r"""['"/:]""", "-", Path(entry.base).name) + f"-{entry.task}-ticket"
    models = client.search_registered_models(f"name = '{name}'")
    _delete_old_aliases(client, models, study)
    versions = client.search_model_versions(f"name = '{name}'")
    texts = {str(x.version): "" for x in versions if x.tags.get("study") in (None, study)}
    if entry.ticket:
        number = _version(client, experiment, name, entry, create=not models)
        ticket = describe_ticket(entry.ticket, entry.seed)
        for key, value in {"study": study, "seed": ticket["seed"]}.items():
            client.set_model_version_tag(name, number, key, value)
        client.set_registered_model_alias(name, ALIAS, number)
        texts[number] = entry.text
    elif models and str(models[0].aliases.get(ALIAS)) in texts:
        client.delete_registered_model_alias(name, ALIAS)
    for number, text in texts.items():
        if text:
            client.set_model_version_tag(name, number, ALIAS, text)
        else:
            client.delete_model_version_tag(name, number, ALIAS)
        client.update_model_version(name, number, literal(text) or NO_MATCH)


def _version(
    client: "MlflowClient", experiment: str, name: str, entry: Registration, create: bool
) -> str:
    """Return the number of the version of the entry's ticket, which is created if needed."""
    assert entry.ticket is not None
    if create:
        client.create_registered_model(name, {"task": entry.task, "base_model": entry.base})
    ticket = describe_ticket(entry.ticket, entry.seed)
    model = client.get_logged_model(logged_model(client, experiment, ticket))
    source, run = model.artifact_location, model.source_run_id
    versions = client.search_model_versions(f"name = '{name}'")
    same = [version for version in versions if version.source == source]
    if not same:
        # Without a run, MLflow would look for the model's id in another store.
        model_id = model.model_id if run else None
        same = [client.create_model_version(name, source, run, model_id=model_id)]
    return str(same[0].version)


def _delete_old_aliases(
    client: "MlflowClient", models: "Sequence[RegisteredModel]", study: str
) -> None:
    """Delete the aliases of OLD_ALIASES, and their tags, that a report of this study set."""
    for model in models:
        for alias in {*OLD_ALIASES} & {*model.aliases}:
            number = model.aliases[alias]
            tags = client.get_model_version(model.name, number).tags
            if alias in tags and tags.get("study") == study:  # both are set with the alias
                client.delete_registered_model_alias(model.name, alias)
                client.delete_model_version_tag(model.name, number, alias)

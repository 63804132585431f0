"""The metadata of a model card, and its evaluation results, in the Hub's own form."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    HfApi,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from lth_scale.config import files
from lth_scale.config.defaults import EMBEDDED
from lth_scale.shipping.publication import Publication
from lth_scale.shipping.published_run import PublishedRun

METRICS = {"spearman": "spearmanr"}  # our name → that in `evaluate`
TAGS = (
    "lottery-ticket",
    "pruning",
    "sparsity",
    "sparse",
    "iterative-magnitude-pruning",
    "lth_scale",
)


@dataclass(frozen=True)
class Licence:
    """name: an identifier of the Hub's list. source: where it is from. more: further metadata."""

    name: str
    source: str
    more: Mapping[str, str] = field(default_factory=dict)


def metadata(run: PublishedRun, repo: str, licence: Licence) -> ModelCardData:
    """Return base model, task, data, and the scores as `model-index`."""
    args, (dataset, _) = run.args, run.task.dataset
    is_local = args.dataset_path is not None
    pattern = run.ticket.arguments.get("pattern", "unstructured")
    patterns = [] if pattern == "unstructured" else [pattern]
    return ModelCardData(
        base_model=run.base_model,
        datasets=None if is_local else [dataset],
        language=None if is_local else "en",
        library_name="transformers",
        license=licence.name,
        metrics=[METRICS.get(name, name) for name in run.metrics["eval"] if name != "loss"],
        pipeline_tag=run.task.pipeline,
        tags=[*TAGS, args.task, *patterns],
        model_name=repo.split("/")[-1],
        eval_results=[
            _eval_result(run, name, value) for name, value in run.metrics["eval"].items()
        ],
        **dict[str, Any](licence.more),
    )


def _eval_result(run: PublishedRun, name: str, value: float) -> EvalResult:
    path, (dataset, config) = run.args.dataset_path, run.task.dataset
    dataset_name = f"{dataset} ({config})"
    if path == EMBEDDED:
        dataset_name = "demo data of lth_scale"
    elif path is not None:
        dataset_name = f"local files in the columns of {dataset_name}"
    return EvalResult(
        task_type=run.task.pipeline,
        dataset_type=dataset if path is None else "local",
        dataset_name=dataset_name,
        dataset_config=config,
        dataset_split="validation",
        metric_type=METRICS.get(name, name),
        metric_value=value,
        metric_name=name,
    )


def evaluation_file(run: PublishedRun) -> str:
    """Return the Hub's file of evaluation results, or "" for the demo's own data."""
    if run.args.dataset_path == EMBEDDED:
        return ""
    dataset, config = run.task.dataset
    metric, value = next(iter(run.metrics["eval"].items()))
    conditions = f"{run.ticket.sparsity:.2%} sparsity, seed {run.seed}; {run.evaluated_on}"
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=config,
        value=value,
        notes=f"{metric} at {conditions}".replace("`", ""),
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)


def licence_of(publication: Publication, online: bool) -> Licence:
    """Return the licence that the base model's card names, or `unknown`."""
    base = publication.base_model
    if base == EMBEDDED:
        return Licence("apache-2.0", "the licence of lth_scale, which includes this small BERT")
    if not publication.is_local(base) and not online:
        return Licence("unknown", f"read from the card of `{base}` when this is pushed")
    try:
        data = _card_data(publication)
        if data is not None and isinstance(data.license, str):
            more = {
                key: str(data[key]) for key in ("license_name", "license_link") if data.get(key)
            }
            return Licence(data.license, "inherited from the base model, whose card names it", more)
    except Exception:  # no card, no network, no such model: the upload reports what it needs
        pass
    return Licence(
        "unknown", "that of the base model applies, and its card could not be read or names none"
    )


def _card_data(publication: Publication) -> ModelCardData | None:
    base = publication.base_model
    if not publication.is_local(base):
        revision = publication.flags.get("model_revision")
        return HfApi().model_info(base, revision=revision).card_data
    path = (publication.directory(base) or Path(base)) / "README.md"
    files.check_regular(path)
    return ModelCard.load(path).data

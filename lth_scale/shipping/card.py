"""The model card of a ticket on the Hub and its metadata, from what a run has on disk."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub as hf
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from lth_scale.config import files
from lth_scale.config.arguments import Transfer
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.markdown import code, code_block, literal, markdown_table
from lth_scale.config.texts import printable
from lth_scale.science import summary
from lth_scale.science.flaws import flaw_of_rows
from lth_scale.shipping.publication import Publication, PublishedRun
from lth_scale.shipping.speed import report
from lth_scale.tracking.console import print_line
from lth_scale.tracking.stages import TICKET_SPARSITY, describe_starved

PICTURE = "figures/score_against_sparsity.png"
METRICS = {"spearman": "spearmanr"}  # our name → that in `evaluate`
TAGS = ("lottery-ticket", "pruning", "sparsity", "sparse", "iterative-magnitude-pruning")
TEMPLATES = Environment(
    loader=PackageLoader("lth_scale.shipping"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {
    "code": code,
    "code_block": code_block,
    "json": partial(json.dumps, ensure_ascii=False),
    "literal": literal,
    "markdown_table": markdown_table,
}


def write(folder: Path, run: PublishedRun, repo: str, online: bool) -> None:
    """Write README.md and `.eval_results/` into a folder; the card shows its figure, if any."""
    licence, source = _licence_of(run.publication, online)
    run_directory, args = run.run_directory, run.args
    if isinstance(args, Transfer) and not Path(args.compare_with or "", "results.json").is_file():
        run_directory = replace(run_directory, arguments=replace(args, compare_with=None))
    restarts = len(run.metrics.get("restarts", ())) or 1
    card = TEMPLATES.get_template("model_card.md").render(
        run=run,
        repo=repo,
        licence=licence["license"],
        source=source,
        metadata=_metadata(run, repo, licence).to_yaml(),
        ticket_megabytes=f"{(run.stage / 'ticket.safetensors').stat().st_size / 1e6:.1f}",
        scores=summary.report(run_directory),
        picture=PICTURE if (folder / PICTURE).is_file() else "",
        speed=speed_section(run),
        saved=run.publication.flags,
        seeds=len(run_directory.seed_rows()) or 1,
        beside=run.metrics.get(TICKET_SPARSITY),
        restarts=restarts,
        unused_layers=describe_starved(run.metrics),
        flaw=flaw_of_rows(run_directory.directory, [run.metrics], run.control),
    )
    files.write_bytes(folder / "README.md", run.publication.text(printable(card)).encode())
    if args.dataset_path == EMBEDDED or (run.is_of_own_data and not run.hub_dataset):
        return  # nobody else has this data
    dataset, config = run.hub_dataset or run.task.dataset
    metric, value = next(iter(run.metrics["eval"].items()))
    notes = f"{metric} at {run.ticket.sparsity:.2%} sparsity, seed {run.seed}; {run.evaluated_on}"
    notes += f"; the best of {restarts} trainings, chosen on this data" if restarts > 1 else ""
    entry = hf.EvalResultEntry(
        dataset_id=dataset, task_id=config, value=value, notes=notes.replace("`", "")
    )
    results = hf.eval_result_entries_to_yaml([entry])
    text = yaml.safe_dump(results, sort_keys=False, allow_unicode=True)
    files.write_bytes(folder / ".eval_results" / f"{args.task}.yaml", text.encode())


def _metadata(run: PublishedRun, repo: str, licence: dict[str, Any]) -> hf.ModelCardData:
    """Return base model, task, data, and the scores as `model-index`."""
    on_hub, (dataset, config) = run.hub_dataset, run.hub_dataset or run.task.dataset
    name_of_data = f"{dataset} ({config})"
    if run.args.dataset_path == EMBEDDED:
        name_of_data = "demo data of lth_scale"
    elif run.is_of_own_data and not on_hub:
        name_of_data = "local files"
    elif not on_hub:
        name_of_data = f"local files in the columns of {name_of_data}"
    scores, pattern = run.metrics["eval"], run.ticket.arguments.get("pattern", "unstructured")
    tags = [*TAGS, *([] if pattern == "unstructured" else [pattern])] if run.ticket.pruned else []
    return hf.ModelCardData(
        base_model=run.base_model,
        datasets=[dataset] if on_hub else None,
        language="en" if on_hub and not run.is_of_own_data else None,
        library_name="transformers",
        metrics=[METRICS.get(name, name) for name in scores if name != "loss"],
        pipeline_tag=run.task.pipeline or None,
        tags=[*tags, "lth_scale", run.args.task],
        model_name=repo.split("/")[-1],
        eval_results=[
            hf.EvalResult(
                task_type=run.task.pipeline or "other",
                dataset_type=dataset if on_hub else "local",
                dataset_name=name_of_data,
                dataset_config=config or None,
                dataset_split="validation",
                metric_type=METRICS.get(name, name),
                metric_value=value,
                metric_name=name,
            )
            for name, value in scores.items()
        ],
        **licence,
    )


def speed_section(run: PublishedRun) -> str:
    """Return the tables of a speed check of this network, or "" if it was not measured."""
    root = run.run_directory.directory
    for path in (root / "speed/speed.json", root.parent / f"speed-{root.name}/speed.json"):
        if not os.path.lexists(path):
            continue
        try:
            speed = files.read_json(path)
            cells = [cell for cell in speed["cells"] if cell["pruned"] == run.ticket.pruned]
            if cells:
                sections = [*map(report.section, cells)]
                template = TEMPLATES.get_template("speed.md")
                return template.render(speed=speed, reading=report.READING, sections=sections)
        except Exception:  # any file may have this name, and hold anything
            text = f"{path}: damaged report of a speed check; it is not in the card"
            print_line(printable(text))
    return ""


def _licence_of(publication: Publication, online: bool) -> tuple[dict[str, str], str]:
    """Return the licence in the base model's card, or `unknown`, as metadata, and its source."""
    base = publication.base_model
    if base == EMBEDDED:
        source = "the licence of lth_scale, which includes this small BERT"
        return {"license": "apache-2.0"}, source
    is_local = publication.is_local(base)
    if not is_local and not online:
        return {"license": "unknown"}, f"read from the card of `{base}` when this is pushed"
    try:
        if is_local:
            path = (publication.directory(base) or Path(base)) / "README.md"
            files.check_regular(path)
            data = hf.ModelCard.load(path).data
        else:
            revision = publication.flags.get("model_revision")
            data = hf.HfApi().model_info(base, revision=revision).card_data
        if data and isinstance(data.license, str) and data.license:
            keys = ("license", "license_name", "license_link")
            licence = {key: str(data[key]) for key in keys if data.get(key)}
            return licence, "inherited from the base model, whose card names it"
    except Exception:  # no card, no network, no such model: the upload reports what it needs
        pass
    source = "that of the base model applies, and its card could not be read or names none"
    return {"license": "unknown"}, source

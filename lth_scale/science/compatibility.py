"""Whether a study can continue the jobs in its directory."""

import functools
import os
from pathlib import Path
from typing import Any

from lth_scale.config import files
from lth_scale.config.arguments import Training, flags_with, with_current_names
from lth_scale.config.errors import BadInput
from lth_scale.config.redaction import redacted
from lth_scale.science.plans import Plan, difference
from lth_scale.science.study_file import Flags
from lth_scale.tracking import provenance


def check_flags(plan: Plan, directory: Path) -> None:
    """Raise BadInput if a job was started with other flags."""
    before, cosmetic = _flags_before(directory), flags_with("cosmetic")
    for job in plan.jobs.values():
        output, flags = directory / "jobs" / job.id, redacted(job.flags)
        old = before.get(job.id, flags)
        if not output.exists() or not difference(old, flags, cosmetic):
            continue
        digests = provenance.input_digests(provenance.Inputs.of(job.args))
        same = provenance.flags_with_digests(_started_with(output), digests)
        if differ := difference(old, flags, cosmetic | same):
            raise BadInput(
                f"--output_dir {directory}: {job.id} was started with other flags "
                f"({differ}, then and now); use another directory or delete {output}"
            )


def _flags_before(directory: Path) -> dict[str, Flags]:
    """The flags of each job in study.json, if it exists. Raises BadInput."""
    path = directory / "study.json"
    if not os.path.lexists(path):
        if os.path.lexists(directory / "jobs"):
            raise BadInput(
                f"--output_dir {directory}: holds jobs but no study.json; use another directory"
            )
        return {}
    try:
        record = files.read_json(path)
        if not record["jobs"] and not record.keys() >= {"name", "cells"}:
            raise KeyError("name")
        return {job["id"]: with_current_names(redacted(job["flags"])) for job in record["jobs"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BadInput(
            f"--output_dir {directory}: study.json is damaged, so the flags of its jobs are "
            "unknown: restore a copy of it or use another directory"
        ) from problem


def check_content(plan: Plan, directory: Path) -> None:
    """Raise BadInput if a job was started with other data or another model."""
    content = functools.cache(provenance.input_digests)  # many jobs, few files
    for job in plan.jobs.values():
        output = directory / "jobs" / job.id
        if not (started := _started_with(output)):
            continue
        digests = content(provenance.Inputs.of(job.args))
        if differ := provenance.differences(started, {"digests": digests}):
            raise BadInput(
                f"--output_dir {directory}: {job.id} was started with other content "
                f"({differ[0]}); restore it, use another directory, or delete {output}"
            )


def _started_with(output: Path) -> dict[str, Any]:
    """arguments.json of a job; {} if it was not started or the file is damaged."""
    try:
        started = {**files.read_json(output / "arguments.json")}
        provenance.check_types(started)
        return started
    except (OSError, ValueError, TypeError, RecursionError):
        return {}  # the job's command reports the damage


def check_weights(plan: Plan) -> None:
    """Raise BadInput if a ticket would be searched in other weights than it is trained in."""
    digest = functools.cache(_base_sha256)
    for job in plan.jobs.values():
        if not {"ticket", "model_name_or_path"} <= job.flags.keys() or job.args.allow_other_weights:
            continue  # without the flag, a job takes the base model of its ticket
        searched, trained = (
            (args.model_name_or_path, args.model_revision)
            for args in (plan.jobs[job.needs[0]].args, job.args)
        )
        if searched == trained:
            continue
        source, target = digest(*searched), digest(*trained)
        if source and target and source != target:
            raise BadInput(
                f"{job.id}: --model_name_or_path {trained[0]}: has base_sha256 {target[:12]}…, but "
                f"its ticket is searched in {searched[0]} with {source[:12]}…: other weights; use "
                "one model for both, or --allow_other_weights"
            )


def _base_sha256(model: str, revision: str | None) -> str:
    """The digest of a model's base weights; empty if it cannot be loaded here."""
    from transformers import AutoModelForSequenceClassification  # imports torch

    from lth_scale.pruning.prunable_set import base_digest
    from lth_scale.tasks.loading import load_model, load_tokenizer

    args = Training(task="sst2", model_name_or_path=model, model_revision=revision)
    try:
        loaded = load_model(args, AutoModelForSequenceClassification, load_tokenizer(args))
    except BadInput:
        return ""  # the job's command reports it
    return base_digest(loaded.model, loaded.fresh)

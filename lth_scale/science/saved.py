"""Studies saved as one small file, from which the report can be written again."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lth_scale.config import files
from lth_scale.config.arguments import flags_with, with_current_names
from lth_scale.config.errors import BadInput
from lth_scale.science.example_facts import example_facts
from lth_scale.science.plans import difference
from lth_scale.science.results import DAMAGE, load_results, read_jobs
from lth_scale.science.sections.masks import mask_facts
from lth_scale.science.study_record import parse_record, read_json
from lth_scale.tracking.machine import git_commit, machine, versions

# What is saved of a row of results, and of a job.
ROW_KEYS = (
    *("round", "seed", "sparsity", "steps", "eval", "seconds", "peak_memory", "starved"),
    *("trivial", "constant_prediction", "training_rows"),
)
JOB_KEYS = ("id", "kind", "directory", "flags")
MASKS = ("layers", "shared", "common")  # by task or pair of tasks, and seed
EXAMPLES = ("trainings", "pooled")  # by network
PACKAGES = ("lth_scale", "torch", "transformers", "accelerate")

Saved = dict[str, Any]  # the contents of a saved file


def save(directory: Path, file: Path) -> None:
    """Save a study into `file`, merged with its previous contents of the same study.

    Raises BadInput if the study is damaged or the file is not a saved study.
    """
    saved = to_dict(directory)
    try:
        if os.path.lexists(file):
            saved = _merge(files.read_json(file), saved)
    except (OSError, RecursionError, *DAMAGE):
        raise BadInput(
            f"--save {file}: exists and was not written by --save; use another file or delete it"
        ) from None
    files.write_json(file, saved)


def to_dict(directory: Path) -> Saved:
    """What a report needs of the study in `directory`. Raises BadInput."""
    study = load_results(directory)
    plan: Any = read_json(directory / "study.json")
    rows, states = read_jobs(directory, parse_record(plan).jobs)
    return {
        "made": provenance(directory, plan.get("command", "lth_scale.study")),
        "plan": plan | {"jobs": [{key: job[key] for key in JOB_KEYS} for job in plan["jobs"]]},
        "rows": {
            job: [{key: row[key] for key in row if key in ROW_KEYS} for row in results]
            for job, results in rows.items()
        },
        "finished": [job for job, state in states.items() if state == "finished"],
        "masks": mask_facts(study),
        "examples": example_facts(study).to_json(),
    }


def _merge(old: Saved, new: Saved) -> Saved:
    """`new`, with the masks and longer runs of `old` for jobs with the same flags."""
    started = [job for job, rows in old["rows"].items() if rows]
    same = [job for job in started if _is_same(old, new, job)]
    longer = {job for job in same if len(old["rows"][job]) > len(new["rows"][job])}
    origin = {job: old if job in longer else new for job in new["rows"]}
    masks, examples, made = new["masks"], new["examples"], new["made"]
    if is_same := bool(same) and len(same) == len(started):
        examples = _merge_examples(old.get("examples", {}), examples)
    if is_same and masks["sparsity"] == old["masks"]["sparsity"]:
        masks = masks | {key: _merge_seeds(old["masks"].get(key, {}), masks[key]) for key in MASKS}
    if longer:
        ran_here = any(rows for job, rows in new["rows"].items() if job not in longer)
        made = merge_provenance(old["made"], made) if ran_here else old["made"]
        made = made | {"command": new["made"]["command"]}
    return new | {
        "made": made,
        "rows": {job: saved["rows"][job] for job, saved in origin.items()},
        "finished": [job for job, saved in origin.items() if job in saved["finished"]],
        "masks": masks,
        "examples": examples,
    }


def _is_same(old: Saved, new: Saved, job: str) -> bool:
    """True if a job has the same flags in both; a search may have another target."""
    before, now = (
        {entry["id"]: with_current_names(entry["flags"]) for entry in saved["plan"]["jobs"]}.get(
            job
        )
        for saved in (old, new)
    )
    if before is None or now is None:
        return False
    return not difference(before, now, ignore=flags_with("cosmetic") | {"target_sparsity"})


def _merge_seeds(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {key: {**old.get(key, {}), **new.get(key, {})} for key in {**new, **old}}


def _merge_examples(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Both, and of a training that both have the new one, unless only that has a problem."""
    layers = (
        _trainings(saved, has_problem) for has_problem in (True, False) for saved in (old, new)
    )
    pooled = {**old.get("pooled", {}), **new["pooled"]}
    return {"trainings": functools.reduce(_merge_seeds, layers), "pooled": pooled}


def _trainings(examples: Mapping[str, Any], has_problem: bool) -> dict[str, dict[str, Any]]:
    return {
        network: {seed: x for seed, x in by_seed.items() if ("problem" in x) == has_problem}
        for network, by_seed in examples.get("trainings", {}).items()
    }


def merge_provenance(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The new command, with the machines and versions of both."""
    machines = dict.fromkeys([*old["machine"].split(" and "), new["machine"]])
    versions = [
        dict(part.split(" ", 1) for part in made["versions"].split(", ")) for made in (old, new)
    ]
    return {
        "command": new["command"],
        "machine": " and ".join(machines),
        "versions": _version_text(versions),
    }


def _version_text(versions: Sequence[Mapping[str, str]]) -> str:
    """`torch 2.8, git 1a2b3c4d5/6e7f8a9b0`: each package with all its versions."""
    values = {
        package: {version for entry in versions for version in entry[package].split("/")}
        for package in versions[0]
    }
    return ", ".join(f"{package} {'/'.join(sorted(known))}" for package, known in values.items())


def provenance(directory: Path | None, command: str) -> dict[str, str]:
    """The command, this machine, and the versions that the jobs in `directory` recorded.

    Without a directory or a job: the versions of this process. Raises BadInput.
    """
    paths = sorted(directory.glob("**/arguments.json")) if directory else []
    recorded: list[Any] = [read_json(path) for path in paths]
    if not recorded:
        recorded = [{"versions": versions(), "git_commit": git_commit()}]
    packages = [entry.get("versions", entry) for entry in recorded if isinstance(entry, dict)]
    if len(packages) < len(recorded) or not all(isinstance(entry, dict) for entry in packages):
        raise BadInput(
            f"{directory}: it contains a damaged arguments.json; run its job again or delete it"
        )
    known = [
        {name: str(package.get(name)) for name in PACKAGES}
        | {"git": str(entry.get("git_commit"))[:9]}
        for package, entry in zip(packages, recorded, strict=True)
    ]
    here = machine()
    return {
        "command": command,
        "machine": f"{here['cpu']}, {here['cores']}, {here['gpu'] or 'no GPU'}",
        "versions": _version_text(known),
    }

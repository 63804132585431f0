"""Studies kept as one small file, from which a report can be written again."""

import os
from pathlib import Path
from typing import Any

from lth_scale.config import files
from lth_scale.config.arguments import flags_with
from lth_scale.config.errors import BadInput
from lth_scale.science import results, sections
from lth_scale.science.plans import difference
from lth_scale.tracking.versions import git_commit, versions

KEPT = (
    "round",
    "seed",
    "sparsity",
    "steps",
    "eval",
    "seconds",
    "peak_memory",
    "starved",
)  # of a row of results

WANTED = ("id", "kind", "directory", "flags")  # of a job

PACKAGES = ("lth_scale", "torch", "transformers", "accelerate")


def save(directory: Path, file: Path) -> None:
    """Write `keep` of a study into `file`, and leave in it what is of the same study. Raises BadInput for damage."""
    kept = keep(directory)
    try:
        kept = joined(kept, files.read_json(file)) if os.path.lexists(file) else kept
    except (OSError, RecursionError, *results.DAMAGE):
        raise BadInput(
            f"--save {file}: is there, and is no file of --save; give another, or delete it"
        ) from None
    files.write_json(file, kept)


def joined(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`mine`, with what `other` has of jobs of the same flags: masks, and rows where they went further there."""
    then = {job["id"]: job["flags"] for job in other["plan"]["jobs"] if other["rows"][job["id"]]}
    now = {job["id"]: job["flags"] for job in mine["plan"]["jobs"]}
    may_differ = {
        *flags_with("cosmetic"),
        "target_sparsity",
    }  # a search may have been meant to go less far
    same = [
        job for job in then if job in now and not difference(then[job], now[job], but=may_differ)
    ]
    further = {job for job in same if len(other["rows"][job]) > len(mine["rows"][job])}
    rows = {
        job: other["rows"][job] if job in further else those for job, those in mine["rows"].items()
    }
    finished = [job for job in rows if job in (other if job in further else mine)["finished"]]
    masks, before = mine["masks"], other["masks"]
    if same and len(same) == len(then) and masks["sparsity"] == before["sparsity"]:
        masks = masks | {of: _by_seed(before[of], masks[of]) for of in ("layers", "shared")}
    made = both_made(other["made"], mine["made"]) if further else mine["made"]
    if further and not any(those for job, those in mine["rows"].items() if job not in further):
        made = other["made"] | {"command": made["command"]}  # nothing of it was run here
    return mine | {"made": made, "rows": rows, "finished": finished, "masks": masks}


def both_made(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """The command of now, with the machines and the versions of both."""
    machines = dict.fromkeys([*before["machine"].split(" and "), now["machine"]])
    listed = [
        dict(part.split(" ", 1) for part in each["versions"].split(", ")) for each in (before, now)
    ]
    return {
        "command": now["command"],
        "machine": " and ".join(machines),
        "versions": _versions(listed),
    }


def _versions(listed: list[dict[str, str]]) -> str:
    every = {name: {one for each in listed for one in each[name].split("/")} for name in listed[0]}
    return ", ".join(f"{name} {'/'.join(sorted(each))}" for name, each in every.items())


def _by_seed(
    before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {
        key: {**before.get(key, {}), **now.get(key, {})} for key in dict.fromkeys([*now, *before])
    }


def keep(directory: Path) -> dict[str, Any]:
    """What a report needs of the study below `directory`. Raises BadInput."""
    study, plan = results.load_results(directory), results.read(directory / "study.json")
    rows, finished = results.results(directory, plan)
    return {
        "made": made(directory, plan.get("command", "lth_scale.study")),
        "plan": plan | {"jobs": [{name: job[name] for name in WANTED} for job in plan["jobs"]]},
        "rows": {
            job: [{name: x for name, x in row.items() if name in KEPT} for row in mine]
            for job, mine in rows.items()
        },
        "finished": [job for job, whole in finished.items() if whole],
        "masks": sections.mask_facts(study),
    }


def made(directory: Path | None, command: str) -> dict[str, str]:
    """The command, the machine that this is, and the versions that the jobs below `directory` wrote down, or of now."""
    from lth_scale.tracking.machine import machine  # imports torch

    here, found = machine(), sorted(directory.glob("**/arguments.json")) if directory else []
    wrote = [results.read(path) for path in found] or [
        {"versions": versions(), "git_commit": git_commit()}
    ]
    if not all(
        isinstance(each.get("versions", each) if isinstance(each, dict) else each, dict)
        for each in wrote
    ):
        raise BadInput(
            f"{directory}: an arguments.json below it is damaged; run its job again, or delete it"
        )
    listed = [
        {name: str(each.get("versions", each).get(name)) for name in PACKAGES} for each in wrote
    ]
    commits = [{"git": str(each.get("git_commit"))[:9]} for each in wrote]
    return {
        "command": command,
        "machine": f"{here['cpu']}, {here['cores']}, {here['gpu'] or 'no GPU'}",
        "versions": f"{_versions(listed)}, {_versions(commits)}",
    }

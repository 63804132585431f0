"""A study runs each job of its grid once, even if killed, split or repeated; with toy jobs."""

import collections
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForMaskedLM

from lth_scale import study
from lth_scale.config.command import as_argv
from lth_scale.config.errors import BadInput
from lth_scale.science import compatibility, plans, runner, study_file
from lth_scale.science.plans import Condition

STUDIES = Path(__file__).parents[2] / "studies"
TOY = """
import json, os, pathlib, sys, time
flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
home = pathlib.Path(flags["--output_dir"])
for name in ("--dense", "--ticket", "--theta"):
    if name in flags:
        needed = flags[name].split("jobs/")[1].split("/")[0]
        assert list(home.parent.glob(needed + "/complete"))
with open(home.parent.parent / "ran", "a") as log:
    log.write(home.name + "\\n")
home.mkdir(exist_ok=True)
end = time.monotonic() + float(os.environ.get("TOY_SECONDS", "0"))
while time.monotonic() < end and not home.parent.parent.joinpath("released").exists():
    time.sleep(0.02)
if home.name == os.environ.get("TOY_FAILS"):
    sys.exit("error: TOY_FAILS")
home.joinpath("results.json").write_text(json.dumps([{"steps": 10, "seconds": 20.0}]))
home.joinpath("complete").touch()
"""
GRID = {
    "flags": {"preset": "demo", "max_steps": 10},
    "tasks": ["mlm", "sst2"],
    "seeds": [1, 2],
    "sparsities": [0.1, 0.2, 0.3],
    "controls": ["random_mask", "reinit"],
    "control_sparsities": [0.2],
}
TRANSFER = {
    "sources": ["mlm", "sst2"],
    "targets": ["mlm", "sst2"],
    "sparsity": 0.3,
    "controls": ["one_shot"],
}
POINTS = (0.1, 0.2, "none")
SMALL = {
    **GRID,
    "tasks": ["sst2"],
    "sparsities": [0.1],
    "control_sparsities": [0.1],
    "controls": ["reinit"],
}


@pytest.fixture
def write(tmp_path):
    """Write a study whose jobs are toys."""
    (tmp_path / "toy.py").write_text(TOY)

    def go(file: str = "toys", **keys) -> Path:
        path = tmp_path / f"{file}.yaml"
        path.write_text(
            yaml.safe_dump({"launcher": f"{sys.executable} {tmp_path / 'toy.py'}", **keys})
        )
        return path

    return go


@pytest.fixture
def begin(tmp_path):
    """Start `lth_scale.study` in its own process, with --output_dir tmp_path/out."""

    def go(file: Path, *flags: str, **environment: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "lth_scale.study",
            str(file),
            "--output_dir",
            str(tmp_path / "out"),
            *flags,
        ]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    return go


@pytest.fixture
def ran(tmp_path):
    """How many times each job was run."""
    return lambda: collections.Counter((tmp_path / "out/ran").read_text().split())


def planned(file: Path, **flags) -> plans.Plan:
    return plans.build_plan(study_file.load_study(file, flags))


def finish(process: subprocess.Popen) -> tuple[int, str]:
    out, err = process.communicate(timeout=60)
    assert err == ""
    return process.returncode, out


def test_a_grid_is_planned_as_searches_controls_and_conditions(write):
    plan = planned(write(**GRID))
    searches = [f"search-{task}-seed{seed}" for task in ("mlm", "sst2") for seed in (1, 2)]
    assert (
        list(plan.jobs)[:4] == searches and len(plan.jobs) == 4 + 2 * 4
    )  # two controls at one sparsity
    reinit = plan.jobs["transfer-sst2-seed2-from-sst2-seed2-0.20-reinit"]
    assert reinit.needs == ("search-sst2-seed2",)
    assert reinit.flags["ticket"] == "jobs/search-sst2-seed2/rounds/02/ticket.safetensors"
    random = plan.jobs["transfer-sst2-seed2-0.20-random_mask"]
    assert random.needs == () and random.flags["target_sparsity"] == 0.2
    cells = plan.to_dict()["cells"]
    assert len(cells) == 4 * (1 + 3 + 2)  # dense, found, controls
    assert {
        "task": "sst2",
        "seed": 2,
        "sparsity": 0.2,
        "control": "random_mask",
        "source": "sst2",
        "rewind": "0",
        "job": random.id,
    } in cells
    dense = [cell for cell in cells if cell["sparsity"] == 0]
    assert [cell["job"] for cell in dense] == searches and {cell["source"] for cell in dense} == {
        None
    }
    assert "quick look" in plan.to_dict()["note"]


def test_rewound_searches_share_the_dense_network_and_keep_its_points(write):
    plan = planned(
        write(**{**SMALL, "seeds": [1], "controls": ["reinit"]}, rewind=[0, 0.2, "none"])
    )
    plain, rewound, standard = (
        plan.jobs[f"search-sst2-seed1{end}"] for end in ("", "-rewind0.2", "-rewindnone")
    )
    assert plain.flags["keep_theta"] == "0.2" and plain.needs == ()
    assert (
        rewound.flags["rewind_step"] == "0.2" and rewound.flags["dense"] == "jobs/search-sst2-seed1"
    )
    assert rewound.needs == (plain.id,)
    assert (
        standard.flags["rewind"] == "none"
        and "dense" not in standard.flags
        and standard.needs == ()
    )
    assert (
        runner.steps_of(plain) == 20
        and runner.steps_of(rewound) == 8
        and runner.steps_of(standard) == 20
    )
    shown = [
        (cell.rewind, cell.source, job)
        for cell, job in plan.conditions.items()
        if cell.sparsity and cell.control == "none"
    ]
    assert shown == [
        ("0", "sst2", plain.id),
        ("0.2", "sst2", rewound.id),
        ("none", "sst2", standard.id),
    ]


def test_transfers_share_the_dense_network_and_one_shot_pruning(write):
    plan = planned(write(flags=GRID["flags"], transfer={**TRANSFER, "seeds": [1, 2]}))
    kinds = collections.Counter(name.split("-")[0] for name in plan.jobs)
    # The searches of seed 1, dense of seed 2; on each target: the other's ticket twice, its own
    # with seed 2, and one-shot.
    assert kinds == {"search": 2, "dense": 2, "transfer": 2 * (2 + 1 + 2)}
    assert plan.jobs["transfer-mlm-seed1-from-sst2-seed1-0.30-none"].needs == ("search-sst2-seed1",)
    assert plan.jobs["transfer-mlm-seed1-0.30-one_shot"].needs == ()
    assert (
        plan.conditions[Condition("mlm", 1, 0.3, "one_shot")] == "transfer-mlm-seed1-0.30-one_shot"
    )
    assert plan.conditions[Condition("mlm", 1, 0.3, source="mlm")] == "search-mlm-seed1"
    assert plan.conditions[Condition("mlm", 2)] == "dense-mlm-seed2"


def test_a_study_plans_and_prices_dense_networks_with_the_budget_of_the_search(write):
    controls = ["dense_long", "dense_restarts"]
    plan = planned(write(**{**GRID, "controls": controls, "control_sparsities": [0.1, 0.3]}))
    assert len(plan.jobs) == 4 + 4 * 2 * 2
    for number, control in itertools.product((1, 3), controls):
        job = plan.jobs[f"transfer-sst2-seed2-{number}-rounds-{control}"]
        assert (
            job.flags["ticket"] == f"jobs/search-sst2-seed2/rounds/{number:02d}/ticket.safetensors"
        )
        assert job.needs == ("search-sst2-seed2",) and job.args.control == control
        assert runner.steps_of(job) == (number + 1) * 10
        condition = Condition("sst2", 2, round(0.1 * number, 1), control, "sst2")
        assert plan.conditions[condition] == job.id
    transfers = {**TRANSFER, "seeds": [1], "controls": controls}
    plan = planned(write(flags=GRID["flags"], transfer=transfers))
    name = "transfer-mlm-seed1-3-rounds-dense_long"  # serves the tickets of both sources
    both = [plan.conditions[Condition("mlm", 1, 0.3, "dense_long", x)] for x in ("mlm", "sst2")]
    assert both == [name] * 2 and runner.steps_of(plan.jobs[name]) == 40


def test_a_dry_run_shows_the_price_of_a_dense_network_with_a_budget(write, begin):
    for controls, steps in ((["reinit"], 20 + 10), (["dense_long"], 20 + 20)):
        file = write(**{**SMALL, "seeds": [1], "controls": controls})
        code, out = finish(begin(file, "--dry_run"))
        assert code == 0 and re.search(rf"in all +{steps} ", out)


def test_transfers_at_several_sparsities_share_their_searches_and_dense_networks(write):
    flags = GRID["flags"]
    one, other, both = (
        planned(write(flags=flags, transfer={**TRANSFER, "seeds": [1, 2], "sparsity": sparsity}))
        for sparsity in (0.3, 0.2, [0.2, 0.3])
    )
    assert {*both.jobs} == {*one.jobs} | {*other.jobs}  # the ids of one sparsity, unchanged
    assert {*both.conditions} == {*one.conditions} | {*other.conditions}
    assert both.jobs["search-mlm-seed1"].flags["target_sparsity"] == 0.3
    assert both.conditions[Condition("mlm", 1, 0.2, source="mlm")] == "search-mlm-seed1"
    ticket = both.jobs["transfer-mlm-seed1-from-sst2-seed1-0.20-none"].flags["ticket"]
    assert ticket == "jobs/search-sst2-seed1/rounds/02/ticket.safetensors"
    alone = planned(write(flags=flags, transfer={**TRANSFER, "seeds": [1, 2], "sparsity": [0.3]}))
    assert alone.to_dict() == one.to_dict()


def test_rewound_transfers_start_from_the_weights_of_the_sources_search(write):
    transfer = {**TRANSFER, "seeds": [2], "source_seed": 1, "rewind": [0, 0.2, "none"]}
    plan = planned(write(flags=GRID["flags"], transfer=transfer))
    assert plan.jobs["search-sst2-seed1"].flags["keep_theta"] == "0.2"
    rewound, standard = (
        plan.jobs[f"transfer-mlm-seed2-from-sst2-seed1-0.30-none-rewind{x}"] for x in (0.2, "none")
    )
    search = "jobs/search-sst2-seed1-rewind0.2"
    assert rewound.needs == ("search-sst2-seed1-rewind0.2",)
    assert rewound.flags["ticket"] == f"{search}/rounds/03/ticket.safetensors"
    assert rewound.flags["theta"] == f"{search}/theta.safetensors"
    last = "jobs/search-sst2-seed1-rewindnone/rounds/03"
    assert standard.flags["ticket"] == f"{last}/ticket.safetensors"
    assert standard.flags["theta"] == f"{last}/weights.safetensors"
    conditions = [condition for condition in plan.conditions if condition.rewind != "0"]
    assert Condition("mlm", 2, 0.3, source="sst2", rewind="none") in conditions
    assert len(conditions) == 4 and all(x.source != x.task for x in conditions)


def test_rewound_transfers_share_the_searches_that_the_study_rewinds(write):
    grid = {**GRID, "controls": ["reinit"], "seeds": [1], "rewind": [0.1, "none"]}
    transfer = {**TRANSFER, "rewind": [0.2, "none"]}
    plan = planned(write(**grid, transfer=transfer))
    searches = {job for job in plan.jobs if job.startswith("search-mlm")}
    assert searches == {f"search-mlm-seed1{x}" for x in ("", *map("-rewind{}".format, POINTS))}
    assert plan.jobs["search-mlm-seed1"].flags["keep_theta"] == "0.1,0.2"


def test_weights_that_standard_pruning_does_not_keep_are_refused(write):
    transfer = {**TRANSFER, "sparsity": [0.2, 0.3], "rewind": ["none"]}
    with pytest.raises(BadInput, match="rewind: none: search-sst2-seed1-rewindnone keeps only"):
        planned(write(flags=GRID["flags"], transfer=transfer))


def test_standard_pruning_to_two_sparsities_is_two_searches(write):
    grid = {**GRID, "rewind": ["none"], "rewind_sparsities": [0.2]}
    with pytest.raises(BadInput, match=r"seed1-rewindnone: to sparsity 0\.2 and to 0\.3, which"):
        planned(write(**grid, transfer={**TRANSFER, "rewind": ["none"]}))


@pytest.mark.parametrize(
    ("sparsity", "why"),
    [
        ([], r"\[\]: invalid value; for example: 0.7 or \[0.5, 0.7\]"),
        ([0.5, 0.5], "0.5 is given twice"),
        ([0.5, 1], r"\[0.5, 1\]: invalid value"),
        (["much"], "invalid value"),
    ],
)
def test_sparsities_of_transfers_are_distinct_fractions(sparsity, why, write):
    with pytest.raises(BadInput, match=f"transfer: sparsity: .*{why}"):
        planned(write(flags=GRID["flags"], transfer={**TRANSFER, "sparsity": sparsity}))


def test_searches_and_one_shot_pruning_use_the_scope_of_the_study(write):
    flags = {**GRID["flags"], "scope": "layerwise"}
    plan = planned(
        write(
            flags=flags,
            transfer={**TRANSFER, "seeds": [1, 2], "controls": ["one_shot", "random_mask"]},
        )
    )
    scopes = {job.id: job.flags.get("scope") for job in plan.jobs.values()}
    assert {scope for job, scope in scopes.items() if "search" in job or "one_shot" in job} == {
        "layerwise"
    }
    assert {
        scope for job, scope in scopes.items() if "search" not in job and "one_shot" not in job
    } == {None}


def test_included_studies_share_their_jobs(write, tmp_path):
    write("deep", **GRID)
    write("wide", flags=GRID["flags"], transfer={**TRANSFER, "seeds": [1, 2]})
    write("back", **{**SMALL, "sparsities": [0.4], "control_sparsities": [0.4], "rewind": ["0.5"]})
    plan = planned(
        write("all", include=["deep.yaml", "wide.yaml", "back.yaml"], flags={"max_steps": 7})
    )
    alone = [planned(tmp_path / f"{name}.yaml") for name in ("deep", "wide", "back")]
    assert set(plan.jobs) == {name for one in alone for name in one.jobs} - {
        "dense-mlm-seed2",
        "dense-sst2-seed2",
        "transfer-mlm-seed2-from-mlm-seed1-0.30-none",
        "transfer-sst2-seed2-from-sst2-seed1-0.30-none",  # rounds of the searches of seed 2
    }
    longest = plan.jobs["search-sst2-seed1"].flags
    assert longest["target_sparsity"] == 0.4 and longest["keep_theta"] == "0.5"
    assert {job.flags["max_steps"] for job in plan.jobs.values()} == {7}
    write("wide", flags={"preset": "demo", "max_steps": 8}, transfer=TRANSFER)
    with pytest.raises(
        BadInput, match="search-mlm-seed1: is in two studies, with --max_steps 10 and 8"
    ):
        planned(write("both", include=["deep.yaml", "wide.yaml"]))


def test_a_file_included_many_times_counts_once(write):
    once = planned(write("deep", **SMALL))
    for k in reversed(range(40)):
        below = "deep.yaml" if k == 39 else f"level{k + 1}.yaml"
        top = write(f"level{k}", include=[below, f"./{below}"])
    plan = planned(top)
    assert plan.jobs == once.jobs and plan.conditions == once.conditions and len(plan.studies) == 41


def test_a_study_of_more_than_100_files_is_refused(write):
    for k in range(101):
        write(f"level{k}", include=[f"level{k + 1}.yaml"])
    with pytest.raises(BadInput, match="more than 100 files"):
        planned(write("top", include=["level0.yaml"]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-3", -3),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.5e-3", 0.0015),
        ("1e-3", "1e-3"),
        ("09", "09"),
        ("true", True),
        ("False", False),
        ('"010"', "010"),
        ('"2:4"', "2:4"),
    ],
)
def test_unambiguous_values_are_read(text, value):
    assert study_file.PlainLoader(f"[{text}]").get_single_data() == [value]


def test_a_note_may_have_several_lines(write):
    assert (
        planned(write(**SMALL, note="one\n  sentence\n")).studies[0].content.note == "one sentence"
    )


def test_command_line_flags_override_the_file_and_the_task_is_substituted(write, tmp_path):
    (tmp_path / "sst2").mkdir()
    tasks = {
        "sst2": {"dataset_path": f"{tmp_path}/{{task}}", "max_steps": 3, "learning_rate": 1e-3}
    }
    file = write(**{**SMALL, "tasks": tasks})
    flags = planned(file, max_steps="5").jobs["search-sst2-seed1"].flags
    assert (
        flags["dataset_path"] == f"{tmp_path}/sst2"
        and flags["max_steps"] == "5"
        and flags["learning_rate"] == 1e-3
    )
    assert study.overrides(["--max_steps", "-1", "--bf16", "--optim=sgd"]) == {
        "max_steps": "-1",
        "bf16": True,
        "optim": "sgd",
    }


def test_a_study_begun_under_the_earlier_name_of_its_score_continues(write, tmp_path):
    plan = planned(write(**SMALL), score="accumulated_taylor")
    record = plan.to_dict()
    for job in record["jobs"]:
        job["flags"] = {**job["flags"], "score": "movement"}
        (tmp_path / job["directory"]).mkdir(parents=True)
    (tmp_path / "study.json").write_text(json.dumps(record))
    searches = {name: job for name, job in plan.jobs.items() if job.kind == "imp"}
    plan = plans.Plan(plan.studies, searches)
    compatibility.check_flags(plan, tmp_path)
    with pytest.raises(BadInput, match="--score accumulated_taylor and magnitude"):
        compatibility.check_flags(planned(write(**SMALL), score="magnitude"), tmp_path)
    with pytest.raises(BadInput, match="search-sst2-seed1: --score: movement is called accumul"):
        planned(write(**SMALL), score="movement")


def test_a_ticket_is_not_trained_in_other_weights_than_those_of_its_search(
    write, tiny_bert, other_bert, tmp_path
):
    engine = shutil.copytree(
        tiny_bert, tmp_path / "engine", ignore=shutil.ignore_patterns("*.safetensors")
    )
    AutoModelForMaskedLM.from_pretrained(tiny_bert).save_pretrained(engine, max_shard_size="20KB")

    def plan(target, **flags) -> plans.Plan:
        models = {
            "mlm": {"model_name_or_path": str(tiny_bert)},
            "sst2": {"model_name_or_path": str(target)},
        }
        transfer = {**TRANSFER, "seeds": [1]}
        return planned(write(flags=GRID["flags"], tasks=models, transfer=transfer), **flags)

    compatibility.check_weights(plan(engine))
    named = (
        r"transfer-\S+: --model_name_or_path \S+: has base_sha256 \w{12}….* in \S+"
        r".*--allow_other_weights"
    )
    with pytest.raises(BadInput, match=named):
        compatibility.check_weights(plan(other_bert))
    allowed = plan(other_bert, allow_other_weights=True)
    compatibility.check_weights(allowed)
    assert (
        "--allow_other_weights" in allowed.to_dict()["note"]
        and "quick look" in allowed.to_dict()["note"]
    )
    assert "--allow_other_weights" not in plan(engine).to_dict()["note"]


def test_ignore_passes_several_values_to_every_job(write):
    assert study.overrides(["--ignore", "pooler", "query", "--bf16", "--ignore=key"]) == {
        "ignore": ["key"],
        "bf16": True,
    }
    assert study.overrides(["--ignore", "pooler", "query"]) == {"ignore": ["pooler", "query"]}
    with pytest.raises(BadInput, match="x: belongs to no flag"):
        study.overrides(["--bf16", "--optim=sgd", "x"])
    file = write(**{**SMALL, "flags": {**GRID["flags"], "ignore": ["pooler", r"key\."]}})
    planned_jobs = planned(file).jobs.values()
    assert {job.kind for job in planned_jobs} == {"imp", "transfer"} and all(
        job.args.ignore for job in planned_jobs
    )
    argv = as_argv(next(iter(planned_jobs)).flags)
    assert argv[argv.index("--ignore") :][:3] == ["--ignore", "pooler", r"key\."]
    assert planned(file, ignore=["value"]).jobs["search-sst2-seed1"].args.ignore == ("value",)


def test_nearly_empty_matrices_are_listed_below_the_table(write, begin, tmp_path):
    kept = {"encoder.layer.0.output.dense.weight": 3, "encoder.layer.1.output.dense.weight": 9}
    toy = (
        tmp_path / "toy.py",
        TOY.replace('"seconds": 20.0}', f'"seconds": 20.0, "starved": {json.dumps(kept)}}}'),
    )
    file = write(**SMALL)
    toy[0].write_text(toy[1])
    code, text = finish(begin(file))
    lines = [line for line in text.splitlines() if line.startswith("warning")]
    assert code == 0 and len(lines) == 4
    assert (
        "search-sst2-seed1: encoder.layer.0.output.dense.weight keeps 3 weights, "
        "fewer than it has outputs" in text
    )
    assert "and so does 1 other matrix" in lines[0]


def test_a_killed_study_resumes_and_runs_each_job_once(write, begin, ran, tmp_path):
    file = write(**SMALL)
    process = begin(file, TOY_SECONDS="0.7")
    while not (tmp_path / "out/ran").exists() or len(ran()) < 2:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    code, out = finish(begin(file))
    assert code == 0 and ran() == dict.fromkeys(planned(file).jobs, 1)
    assert "| done    |    4 |" in out
    assert finish(begin(file))[0] == 0 and sum(ran().values()) == 4


def test_an_interrupt_also_stops_the_running_job(write, begin, ran, tmp_path):
    process = begin(write(**SMALL), TOY_SECONDS="60")
    while not (tmp_path / "out/ran").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    assert (
        finish(begin(write(**SMALL)))[0] == 0
    )  # would wait for the lock if the job were still running
    assert ran()["search-sst2-seed1"] == 2


def test_a_failed_job_is_reported_and_the_others_run(write, begin, ran):
    file = write(**SMALL)
    code, out = finish(begin(file, TOY_FAILS="search-sst2-seed1"))
    assert code == 1
    assert "[1/4] search-sst2-seed1 … failed" in out and "exit code 1: error: TOY_FAILS" in out
    assert (
        "waiting  transfer-sst2-seed1-from-sst2-seed1-0.10-reinit: needs search-sst2-seed1" in out
    )
    assert (
        "| done    |    2 |" in out and "| failed  |    1 |" in out and "| waiting |    1 |" in out
    )
    assert finish(begin(file))[0] == 0
    assert ran()["search-sst2-seed1"] == 2 and sum(ran().values()) == 5


def test_shares_run_each_job_once_concurrently_or_in_sequence(write, begin, ran, tmp_path):
    file = write(
        **SMALL
    )  # both controls need a search; share 1 has a search and a control that needs the other
    shares = [begin(file, "--index", str(i), "--of", "2", TOY_SECONDS="0.5") for i in (0, 1)]
    assert [finish(process)[0] for process in shares] == [0, 0]
    assert ran() == dict.fromkeys(planned(file).jobs, 1)
    kept = json.loads((tmp_path / "out/study.json").read_text())["command"]
    assert str(file) in kept and "--index" not in kept and "--of" not in kept
    shutil.rmtree(tmp_path / "out")
    for i in (2, 1, 0):  # the last share, a control, first: it runs the search that it needs
        assert finish(begin(file, "--index", str(i), "--of", "3"))[0] == 0
    assert ran() == dict.fromkeys(planned(file).jobs, 1)


def test_a_share_waits_for_a_dependency_in_another_process(write, begin, ran, tmp_path):
    file = write(**{**SMALL, "seeds": [1]})
    first = begin(file, "--index", "0", "--of", "2", TOY_SECONDS="60")
    while not (tmp_path / "out/ran").exists():
        time.sleep(0.05)
    second = begin(file, "--index", "1", "--of", "2")
    line = second.stdout.readline()
    (tmp_path / "out/released").touch()
    assert "waiting for search-sst2-seed1, which another process is running" in line
    assert finish(second)[0] == 0 and finish(first)[0] == 0
    assert ran() == dict.fromkeys(planned(file).jobs, 1)


def test_a_dry_run_prints_costs_and_writes_nothing(write, begin, tmp_path):
    file = write(**SMALL)
    code, out = finish(begin(file, "--dry_run"))
    assert code == 0 and not (tmp_path / "out").exists()
    # two searches of 2 rounds × 10 steps and two controls; 32 × 128 tokens a step
    assert out.splitlines()[5].split()[:5] == ["in", "all", "60", "245,760", "?"]
    finish(begin(file, TOY_FAILS="search-sst2-seed2"))
    out = finish(begin(file, "--dry_run"))[1]
    lines = {line.split()[-1]: line.split() for line in out.splitlines()[1:5]}
    assert lines["search-sst2-seed1"][0] == "done"
    assert lines["search-sst2-seed2"][:5] == [
        "to",
        "do",
        "20",
        "81,920",
        "0.011",
    ]  # 20 steps at 2 s


def test_steps_are_computed_from_the_data_or_the_papers_sizes(write, sst2_data):
    def steps(**flags) -> int | None:
        file = write(
            **{
                **SMALL,
                "flags": {"num_train_epochs": 2, "per_device_train_batch_size": 16, **flags},
            }
        )
        return runner.steps_per_round(planned(file).jobs["search-sst2-seed1"].args)

    assert steps() == 2 * -(-67_349 // 16)
    assert steps(max_train_samples=100) == 2 * 7
    assert steps(dataset_path=str(sst2_data)) == 2 * 4
    assert steps(max_steps=9) == 9


@pytest.mark.parametrize(
    ("name", "jobs", "cells"),
    [
        ("table2", 55 + 4 * 55, 55 * (1 + 9 + 4)),
        ("table4", 55 + 4 * 55, 55 * (1 + 9 + 4)),
        # Searches; dense networks of the other seeds; each source on each target but itself.
        ("figure2_transfer", 11 + 22 + (363 - 11) + 33, 33 * (1 + 11 + 1)),
        # A search; dense networks; the ticket and one-shot pruning at five sparsities.
        ("universality", 1 + 32 + (33 - 1) * 5 + 33 * 5, 33 * (1 + 5 + 5)),
        ("rewinding", 33 * 6, 33 * (1 + 6)),
        # Searches; dense networks; the tickets on other tasks, and with five other weights.
        ("question3", 3 * 6 + (33 - 3) + 90 + 6 + 90 * 5, 33 + 99 + 90 * 5),
        # Of table4, nine tasks with other controls; of universality, four other sparsities.
        (
            "paper",
            55 + 220 + 180 + 330 + 33 + (30 + 33) * 4 + 33 * 5 + 90 * 5,
            55 * (1 + 9 + 4) + 180 + 330 + 33 + (30 + 33) * 4 + 33 * 5 + 90 * 5,
        ),
        ("demo", 6 + 6 + 3 + 6 + 6 + 2 + 12, 6 * (1 + 4) + 6 + 3 + 6 + 6 + 12),
    ],
)
def test_shipped_studies_can_be_planned(name, jobs, cells):
    plan = planned(STUDIES / f"{name}.yaml")
    assert (len(plan.jobs), len(plan.conditions)) == (jobs, cells)
    assert plan.to_dict()["name"] == name
    place = {job: i for i, job in enumerate(plan.jobs)}
    assert all(place[need] < place[job.id] for job in plan.jobs.values() for need in job.needs)
    used = {*plan.conditions.values(), *(need for job in plan.jobs.values() for need in job.needs)}
    assert used == {*plan.jobs}  # no job for nothing


def test_other_flags_for_the_same_directory_are_refused(write, begin, tmp_path):
    file = write(**SMALL)
    assert finish(begin(file))[0] == 0
    process = begin(file, "--max_steps", "11")
    assert process.communicate(timeout=60)[1].startswith(
        f"error: --output_dir {tmp_path / 'out'}: search-sst2-seed1"
    )
    assert process.returncode == 2
    assert finish(begin(file, "--logging_steps", "11"))[0] == 0  # a cosmetic flag
    stored = json.loads((tmp_path / "out/study.json").read_text())
    assert stored["jobs"][0]["directory"] == "jobs/search-sst2-seed1" and stored["sparsities"] == [
        0.1
    ]

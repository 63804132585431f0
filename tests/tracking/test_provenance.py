"""A run continues only with the content it started with; missing facts never differ."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import sentence, write_jsonl
from mlflow import MlflowClient
from transformers import AutoModel, AutoModelForSequenceClassification

from lth_scale import Ticket, load_exported
from lth_scale.config.arguments import Transfer
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.pruning.registries import Schedule
from lth_scale.science import compatibility
from lth_scale.science.plans import Job, Plan
from lth_scale.tracking import provenance
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.training.starting_point import check_dense

# A model, data, and a search that was killed in round 1 of 2.
OLD = Path(__file__).with_name("begun_by_0.1.0.tar.xz")
# The same with a checkpoint and MLflow's journal, a finished search, and its compact export.
RECENT = Path(__file__).with_name("begun_by_0.2.0.tar.xz")


@pytest.fixture
def own(tiny_bert, sst2_data, tmp_path):
    """A model and data of this test's own, as flags."""
    shutil.copytree(tiny_bert, tmp_path / "model")
    shutil.copytree(sst2_data, tmp_path / "data")
    return {"model_name_or_path": tmp_path / "model", "dataset_path": tmp_path / "data"}


@pytest.fixture
def begun(search, own, tmp_path):
    """Begin a search and leave it unfinished; return a function that continues it."""
    out = search(**own)
    for path in (out / "complete", out / "rounds/03/complete"):
        path.unlink()
    return lambda **more: search(**own | more)


def saved(out: Path, name: str = "arguments"):
    """The content of a JSON file of a run."""
    return json.loads((out / f"{name}.json").read_text())


def column(out: Path, name: str) -> list:
    """A column of results.json."""
    return [row[name] for row in saved(out, "results")]


def rewrite(path: Path, old: str, new: str) -> None:
    """Replace text of the same length, and leave size and time as they were."""
    status = path.stat()
    assert len(old) == len(new) and old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip_a_bit(path: Path, old: str = "", new: str = "") -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES = {
    "data/train.jsonl": (rewrite, '"label": 1', '"label": 0'),
    "data/validation.jsonl": (rewrite, "good", "fine"),
    "model/config.json": (rewrite, '"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.2'),
    "model/tokenizer.json": (rewrite, '"lowercase": true', '"lowercase":false'),
    "model/model.safetensors": (flip_a_bit,),
}


@pytest.mark.parametrize("finished", [True, False])
def test_other_content_is_refused_and_touched_or_unread_files_are_not(
    finished, search, small, own, tmp_path
):
    out = search(**own)
    if not finished:
        (out / "complete").unlink()
    for path in tmp_path.glob("[dm]*/*"):
        os.utime(path, (1, 1))
    for name in (
        "README.md",
        "vocab.txt.bak",
        "model.fp16.safetensors",
        "tokenizer-old.json",
        "model-1.safetensors",
    ):
        (tmp_path / "model" / name).write_text("unread")
    (tmp_path / "data/test.jsonl").write_text("unread")
    args = parse(small(**own))
    before = (out / "arguments.json").read_bytes()
    for name, (change, *how) in CHANGES.items():
        content = (tmp_path / name).read_bytes()
        change(tmp_path / name, *how)
        with pytest.raises(
            BadInput,
            match=rf"--output_dir \S+: holds another run .*: {Path(name).name} was sha256 \w+",
        ):
            RunDirectory.open(args)
        (tmp_path / name).write_bytes(content)
        RunDirectory.open(args)  # restored content is the same
    (tmp_path / "model/vocab.txt").write_text("new")
    with pytest.raises(BadInput, match=r"--model_name_or_path: vocab\.txt was missing, is sha256"):
        RunDirectory.open(args)
    assert (out / "arguments.json").read_bytes() == before


def test_another_ticket_or_theta_under_the_same_name_is_refused(search, transfer, small, tmp_path):
    found = search()
    given = {"ticket": tmp_path / "t.safetensors", "theta": tmp_path / "theta.safetensors"}
    shutil.copy(found / "rounds/02/ticket.safetensors", given["ticket"])
    shutil.copy(found / "theta.safetensors", given["theta"])
    out = transfer(**given)
    again = ["--seeds", "42", *small(output_dir=out, target_sparsity=None, **given)]
    RunDirectory.open(parse(again, Transfer))
    shutil.copy(found / "rounds/03/ticket.safetensors", given["ticket"])
    with pytest.raises(BadInput, match=r"--ticket: t\.safetensors was sha256"):
        RunDirectory.open(parse(again, Transfer))
    shutil.copy(found / "rounds/02/ticket.safetensors", given["ticket"])
    flip_a_bit(given["theta"])
    with pytest.raises(BadInput, match=r"--theta: theta\.safetensors was sha256"):
        RunDirectory.open(parse(again, Transfer))


def test_the_launchers_precision_is_recorded_as_a_flag_and_must_not_change(
    begun, monkeypatch, tmp_path
):
    out = begun()
    assert saved(out)["precision"] == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(BadInput, match=r"--bf16 was False, is True"):
        begun()
    other = begun(output_dir=tmp_path / "other", max_steps=0)
    written = saved(other)
    assert written["bf16"] is True and written["precision"] == "bf16"
    # θ₀ has no precision.
    assert Ticket.load(other / "ticket.safetensors").arguments["bf16"] is False
    assert begun(output_dir=other, max_steps=0, bf16=True) == other
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(BadInput, match=r"--bf16 was True, is False"):
        begun(output_dir=other, max_steps=0)


def test_a_flag_wins_over_the_launcher(small, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert parse(small()).fp16
    args = parse(small(bf16=True))
    assert args.bf16 and not args.fp16


def test_another_compile_backend_or_ladder_is_refused_and_nothing_is_written(
    begun, monkeypatch, tmp_path
):
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
        with pytest.raises(BadInput, match=r"compile was no, is \{'backend': 'eager'"):
            begun()
    monkeypatch.setattr(Schedule, "sparsities", lambda *how: [0.0, 0.1, 0.25, 0.3])
    with pytest.raises(BadInput, match=r"the sparsity of round 2 was 0\.2, is 0\.25"):
        begun()
    assert {path: path.read_bytes() for path in before} == before


def test_changed_versions_and_threads_are_reported_in_one_line_and_the_run_continues(
    begun, tmp_path, capfd
):
    path = tmp_path / "out/arguments.json"
    written = json.loads(path.read_text())
    path.write_text(
        json.dumps(written | {"threads": 99, "versions": written["versions"] | {"torch": "2.0.0"}})
    )
    capfd.readouterr()
    out = begun()
    lines = capfd.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith("continues with")]
    assert len(said) == 1 and "threads (was 99)" in said[0] and "(was 2.0.0)" in said[0]
    assert (out / "complete").exists()


def test_a_run_of_version_0_1_0_continues(search, tmp_path, monkeypatch, capfd):
    shutil.unpack_archive(OLD, tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    flags = dict(
        model_name_or_path="model",
        dataset_path="data",
        output_dir="run",
        save_steps=0,
        max_seq_length=16,
    )
    kept = ("arguments.json", "theta.safetensors", "rounds/00/*.*")
    before = {path: path.read_bytes() for pattern in kept for path in Path("run").glob(pattern)}
    with pytest.raises(BadInput, match=r"--seed was 42, is 7"):
        search(**flags, target_sparsity=0.2, seed=7)
    # It may have begun so: version 0.1.0 did not record the launcher's precision.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(BadInput, match=r"another run \(--target_sparsity was 0\.2, is 0\.4\)"):
        search(**flags, target_sparsity=0.4)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    capfd.readouterr()
    out = search(**flags, target_sparsity=0.2)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("not compared")]
    assert len(said) == 1 and "version 0.1.0" in said[0] and "digests, precision" in said[0]
    assert column(out, "pruned") == [0, 58, 115]
    assert before == {path: path.read_bytes() for path in before} and len(before) == 4
    bases = {Ticket.load(path).base_sha256 for path in out.rglob("ticket.safetensors")}
    assert bases == {""}  # as in its first tickets
    # The pooler was initialized fresh, but version 0.1.0 pruned it.
    assert "pooler.dense.weight" in Ticket.load(out / "ticket.safetensors").masks


def test_runs_that_take_their_dense_network_or_ticket_from_version_0_1_0(
    search, transfer, tmp_path, monkeypatch
):
    shutil.unpack_archive(OLD, tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    flags = dict(model_name_or_path="model", dataset_path="data", max_seq_length=16)
    out = search(**flags, output_dir="run", save_steps=0, target_sparsity=0.2)
    Ticket.load(out / "ticket.safetensors").apply(AutoModel.from_pretrained("model"))
    written = saved(out)
    assert "ignore" not in written
    kept = Path(shutil.copytree(out, "kept"))
    (kept / "rounds/00/model").mkdir(exist_ok=True)
    # As --keep_theta left it.
    shutil.copytree("kept/rounds/02/model", "kept/rounds/00/model", dirs_exist_ok=True)
    again = search(**flags, output_dir="again", dense="kept", save_steps=0, target_sparsity=0.3)
    assert column(again, "prunable") == [576] * 4
    moved = transfer(**flags, ticket=out, output_dir="moved")
    # A new run does not prune a fresh pooler.
    assert column(moved, "prunable")[0] == 512
    # As a transfer of version 0.1.0 began.
    for file in ("complete", "seeds/42/complete", "results.json"):
        (moved / file).unlink()
    Ticket.load(out / "ticket.safetensors").save(moved / "seeds/42/ticket.safetensors")
    begun = saved(moved)
    (moved / "arguments.json").write_text(
        json.dumps({k: v for k, v in begun.items() if k != "ignore"})
    )
    transfer(**flags, ticket=out, output_dir="moved")
    assert column(moved, "prunable")[0] == 576


def test_runs_tickets_and_exports_of_version_0_2_0_still_work(
    search, small, tmp_path, monkeypatch, capfd
):
    shutil.unpack_archive(RECENT, tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    flags = dict(
        model_name_or_path="model", dataset_path="data", max_seq_length=16, target_sparsity=0.2
    )
    finished = RunDirectory.open(parse(small(**flags, output_dir="finished")))
    assert finished.is_done()
    assert [row["pruned"] for row in finished.round_rows()] == [0, 51, 102]
    out = search(**flags, output_dir="begun", report_to="mlflow")
    assert "step 2 of 4" in capfd.readouterr().err  # from the checkpoint in round 1
    tickets = [Ticket.load(run / "ticket.safetensors") for run in (out, finished.directory)]
    assert [ticket.pruned for ticket in tickets] == [102, 102]
    assert tickets[0].base_sha256 == tickets[1].base_sha256 != ""
    tickets[1].apply(AutoModel.from_pretrained("model"))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    assert len(runs) == 1 + 3  # the journal is sent to the store that is here
    network = AutoModelForSequenceClassification.from_pretrained("finished/rounds/02/model")
    exported = dict(load_exported("exported").named_parameters())
    for name, weight in network.named_parameters():
        assert torch.equal(exported[name], weight), name


def test_a_flag_that_a_run_did_not_record_does_not_differ(search, small, own):
    out = search(**own)
    written = saved(out)
    (out / "arguments.json").write_text(
        json.dumps({k: v for k, v in written.items() if k not in ("score", "distill")})
    )
    record = RunDirectory.open(parse(small(**own)))
    assert "score, distill" in record.notices({"threads": written["threads"]})[-1]


def test_a_dense_network_of_other_data_is_refused(search, own, tmp_path):
    dense = search(**own, keep_theta="2", output_dir=tmp_path / "dense")
    flags = {**own, "dense": dense, "rewind_step": "2"}
    rewrite(tmp_path / "data/train.jsonl", '"label": 1', '"label": 0')
    with pytest.raises(BadInput, match=r"--dense \S+: .*--dataset_path: train\.jsonl was sha256"):
        search(**flags)
    rewrite(tmp_path / "data/train.jsonl", '"label": 0', '"label": 1')


def test_a_study_is_not_continued_on_other_data(small, own, tmp_path):
    """With jobs of this test's own flags, one of which was begun."""
    flags = {"task": "sst2", "max_steps": 4, **own}
    made = Plan([], {name: Job(name, "imp", flags) for name in ("first", "second")})
    path = tmp_path / "out/jobs/first/arguments.json"
    path.parent.mkdir(parents=True)
    args = made.jobs["first"].args
    path.write_text(json.dumps({**args.as_dict(), "digests": provenance.digests(args)}))
    compatibility.check_content(made, tmp_path / "out")
    write_jsonl(tmp_path / "data/train.jsonl", [{"sentence": sentence(1), "label": 1}])
    with pytest.raises(BadInput, match=r"first .*--dataset_path: train\.jsonl was sha256"):
        compatibility.check_content(made, tmp_path / "out")


def test_the_same_content_under_another_path_continues(search, small, own, tmp_path, monkeypatch):
    out = search(**own)
    monkeypatch.chdir(tmp_path)
    shutil.copytree("data", "data2")
    RunDirectory.open(
        parse(small(model_name_or_path="./model", dataset_path="data2", output_dir=out))
    )
    rewrite(Path("data2/train.jsonl"), '"label": 1', '"label": 0')
    with pytest.raises(BadInput, match=r"--dataset_path: train\.jsonl was sha256"):
        RunDirectory.open(
            parse(small(model_name_or_path="./model", dataset_path="data2", output_dir=out))
        )
    written = saved(out)
    del written["digests"]["data"]
    (out / "arguments.json").write_text(json.dumps(written))
    # Digests are known on one side only.
    with pytest.raises(BadInput, match=r"--dataset_path was \S+/data, is data2"):
        RunDirectory.open(
            parse(small(model_name_or_path="./model", dataset_path="data2", output_dir=out))
        )


def test_relative_and_absolute_paths_of_the_same_file_are_the_same(
    search, small, own, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out = search(**own)
    written = saved(out)
    for name in ("model_name_or_path", "dataset_path"):
        assert written[name] == str(own[name])
    old = {**written, "model_name_or_path": "model", "dataset_path": "./data"}
    del old["digests"]  # as version 0.1.0 wrote it
    (out / "arguments.json").write_text(json.dumps(old))
    RunDirectory.open(parse(small(**own)))
    shutil.copytree("data", "data2")
    with pytest.raises(BadInput, match=r"--dataset_path was \./data, is data2"):
        RunDirectory.open(parse(small(**own | {"dataset_path": "data2"})))


def test_a_study_continues_with_the_same_model_under_another_path(
    small, own, tmp_path, monkeypatch
):
    def planned(model) -> Plan:
        return Plan(
            [],
            {
                "first": Job(
                    "first", "imp", {"task": "sst2", **own, "model_name_or_path": str(model)}
                )
            },
        )

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out/jobs/first/arguments.json"
    path.parent.mkdir(parents=True)
    flags = planned("./model").jobs["first"].flags
    written = {"name": "x", "cells": [], "jobs": [{"id": "first", "flags": flags}]}
    (tmp_path / "out/study.json").write_text(json.dumps(written, default=str))
    args = planned("./model").jobs["first"].args
    path.write_text(json.dumps({**args.as_saved(), "digests": provenance.digests(args)}))
    (tmp_path / "link").symlink_to("model")
    compatibility.check_flags(planned("link"), tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for model in (
        "../model",
        own["model_name_or_path"],
        shutil.copytree(tmp_path / "model", "copied"),
    ):
        compatibility.check_flags(planned(model), tmp_path / "out")
    flip_a_bit(Path("copied/model.safetensors"))
    compatibility.check_flags(planned("copied"), tmp_path / "out")
    with pytest.raises(BadInput, match=r"first .*--model_name_or_path: model\.safetensors"):
        compatibility.check_content(planned("copied"), tmp_path / "out")


def test_a_ticket_and_theta_of_another_name_and_a_copied_dense_network_are_the_same(
    search, transfer, small, own, tmp_path
):
    found = search(**own, keep_theta="2")
    given = {"ticket": found, "theta": found / "theta.safetensors"}
    out = transfer(**given)
    moved = {
        name: shutil.copy(found / f"{name}.safetensors", tmp_path / f"{name}-2.safetensors")
        for name in given
    }
    RunDirectory.open(
        parse(["--seeds", "42", *small(output_dir=out, target_sparsity=None, **moved)], Transfer)
    )
    flags = small(
        **own | {"dataset_path": shutil.copytree(tmp_path / "data", tmp_path / "data2")},
        dense=found,
    )
    # It was trained as these flags say.
    with pytest.raises(BadInput, match="round 0"):
        check_dense(parse(flags), 3, {"precision": "no"})


@pytest.mark.parametrize("whole", [True, False])
def test_only_weights_that_are_loaded_have_digests(whole, tmp_path):
    names = ["a.safetensors", "../b.safetensors"]
    index = {"weight_map": {"x": names[0], "y": names[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in (names[0], "c.safetensors", *(["model.safetensors"] if whole else [])):
        (tmp_path / name).write_text(name)
    found = provenance.input_digests(provenance.Inputs("sst2", str(tmp_path)))["model"]
    assert [*found] == (
        ["model.safetensors"] if whole else ["a.safetensors", "model.safetensors.index.json"]
    )


DAMAGES = [
    *(
        {"digests": value}
        for value in ([1], {"data": "x"}, {"model": {"config.json": 5}}, {"model": None}, None)
    ),
    {"revisions": {"model": 5}},
    {"versions": "x"},
    {"versions": {"torch": 2}},
    {"ladder": 3},
    {"ladder": ["x"]},
    {"threads": "2"},
    {"precision": ["no"]},
    {"matmul_precision": 1},
    {"compile": 3},
]


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_damaged_facts_are_refused(damage, small, own, tmp_path):
    args = parse(small(**own))
    (tmp_path / "out").mkdir()
    written = args.as_dict() | {"digests": provenance.digests(args)} | damage
    (tmp_path / "out/arguments.json").write_text(json.dumps(written))
    with pytest.raises(BadInput, match=r"arguments\.json is damaged"):
        RunDirectory.open(args)
    with pytest.raises(BadInput, match="--dense"):
        check_dense(replace(args, dense=args.output_dir), 0, {})

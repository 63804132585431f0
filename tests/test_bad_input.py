"""Every command: bad input is one line that names flag, value and remedy, exit code 2, and nothing overwritten."""

import json
import lzma
import shutil
import sys
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import sentence, write_jsonl
from safetensors.torch import load_file, save_file

from lth_scale import Ticket, imp
from lth_scale.arguments import exit_on_bad_input
from lth_scale.prunable import prunable


@pytest.fixture
def refused(small, capsys, monkeypatch, tmp_path):
    """Run imp with bad flags; check that nothing was written; return what it said."""

    def go(*extra: str, command=imp, **overrides) -> str:
        AcceleratorState._reset_state(reset_partial_state=True)
        capsys.readouterr()
        before = snapshot(tmp_path)
        monkeypatch.setattr(sys, "argv", ["imp", *small(**overrides), *extra])
        with pytest.raises(SystemExit) as stop:
            exit_on_bad_input(command.main)
        out, err = capsys.readouterr()
        assert stop.value.code == 2
        assert err.startswith("error: ") and err.count("\n") == 1 and out == ""
        assert snapshot(tmp_path) == before
        return err

    return go


def snapshot(directory) -> dict:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


FLAGS = [
    (dict(task="sst3"), ["--task", "sst3", "sst2"]),
    (dict(task=None), ["--task"]),
    (dict(target_sparsity="1.2"), ["--target_sparsity 1.2", "0.7"]),
    (dict(target_sparsity="-0.1"), ["--target_sparsity -0.1", "0.7"]),
    (dict(target_sparsity="nan"), ["--target_sparsity nan", "0.7"]),
    (dict(prune_rate="0"), ["--prune_rate 0", "0.1"]),
    (dict(prune_rate="1.5"), ["--prune_rate 1.5", "0.1"]),
    (dict(learning_rate="fast"), ["--learning_rate", "fast"]),
    (dict(learning_rate="0"), ["--learning_rate 0", "2e-5"]),
    (dict(learning_rate="inf"), ["--learning_rate inf", "2e-5"]),
    (dict(max_steps="-2"), ["--max_steps -2", "-1"]),
    (dict(max_steps="1.5"), ["--max_steps", "1.5"]),
    (dict(num_train_epochs="0"), ["--num_train_epochs 0"]),
    (dict(per_device_train_batch_size="0"), ["--per_device_train_batch_size 0", "1 or more"]),
    (dict(gradient_accumulation_steps="0"), ["--gradient_accumulation_steps 0", "1 or more"]),
    (dict(max_train_samples="0"), ["--max_train_samples 0", "1 or more"]),
    (dict(max_eval_samples="-1"), ["--max_eval_samples -1", "1 or more"]),
    (dict(max_seq_length="3"), ["--max_seq_length 3", "8 or more"]),
    (dict(seed="-1"), ["--seed -1"]),
    (dict(weight_decay="-0.1"), ["--weight_decay -0.1"]),
    (dict(warmup_steps="-5"), ["--warmup_steps -5"]),
    (dict(max_grad_norm="-1"), ["--max_grad_norm -1"]),
    (dict(bf16=True, fp16=True), ["--bf16", "--fp16", "keep one"]),
    (dict(fp16=True), ["--fp16", "GPU", "--bf16"]),
    (dict(optim="lion"), ["--optim", "lion", "adamw_torch"]),
    (dict(optim="adamw_bnb_8bit"), ["--optim adamw_bnb_8bit", "CUDA GPU", "adamw_torch"]),
    (dict(optim_args="momentum"), ["--optim_args momentum", "NAME=NUMBER"]),
    (dict(optim_args="speed=3"), ["--optim_args speed=3", "adamw_torch"]),
    (dict(schedule="sudden"), ["--schedule", "sudden", "linear"]),
    (dict(scope="local"), ["--scope", "local", "layerwise"]),
    (dict(rewind="all"), ["--rewind", "all", "none"]),
    (dict(rewind_step="half"), ["--rewind_step half", "0.05"]),
    (dict(rewind_step="-3"), ["--rewind_step -3", "0.05"]),
    (dict(rewind_step="4"), ["--rewind_step 4", "4 steps"]),
    (dict(rewind_step="1.0"), ["--rewind_step 1.0", "0.05"]),
    (dict(rewind="none", rewind_step="2"), ["--rewind_step 2", "--rewind none"]),
    (dict(rewind="lr", lr_span="all_rounds"), ["--lr_span all_rounds", "--rewind lr"]),
    (dict(lr_scheduler_type="sawtooth"), ["--lr_scheduler_type", "sawtooth", "linear"]),
    (dict(control="placebo"), ["--control", "placebo", "random_mask"]),
    (dict(report_to="paper"), ["--report_to", "paper", "mlflow"]),
    (dict(preset="huge"), ["--preset", "huge", "demo"]),
    (dict(preset="demo", task="cola", dataset_path=None), ["--preset demo", "cola", "sst2"]),
    (dict(dataset_path="embedded", task="rte"), ["--dataset_path embedded", "rte", "sst2"]),
    (dict(learning_rat="1"), ["--learning_rat", "--help"]),
    (dict(dataset_path="/no/such/place"), ["--dataset_path /no/such/place", "train.jsonl"]),
    (dict(model_name_or_path="/no/such/model"), ["--model_name_or_path /no/such/model", "config.json"]),
    (dict(model_name_or_path="./no/model"), ["--model_name_or_path ./no/model", "save_pretrained"]),
    (dict(ticket="/no/ticket"), ["--ticket /no/ticket", "ticket.safetensors"]),
    (dict(ticket="/no/ticket"), ["--ticket /no/ticket", "no such file"]),
    (dict(pattern="4:2"), ["--pattern 4:2", "2:4", "block:4x1"]),
    (dict(pattern="block:0x4"), ["--pattern block:0x4", "block:4x1"]),
    (dict(pattern="block:3x5"), ["--pattern block:3x5", "encoder.layer.0", "divide"]),
    (dict(pattern="2:4", target_sparsity="0.3"), ["--target_sparsity 0.3", "2:4", "0.5"]),
    (dict(score="taylor"), ["--score", "taylor", "movement"]),
    (dict(score="movement", max_steps="0"), ["--score movement", "--max_steps"]),
    (dict(early_bird=True, rewind="none"), ["--early_bird", "--lr_span round"]),
    (dict(dense="/no/run"), ["--dense /no/run", "--output_dir"]),
    (dict(keep_theta="0.5,late"), ["--rewind_step late", "0.05"]),
    (dict(doc_stride="0"), ["--doc_stride 0", "1 or more"]),
    (dict(output_dir="/proc/nothing/here"), ["--output_dir /proc/nothing/here", "another"]),
    (dict(output_dir="/dev/null/x"), ["--output_dir /dev/null/x", "another"]),
]


@pytest.mark.parametrize(("flags", "named"), FLAGS, ids=[" ".join(f"{k}={v}" for k, v in f.items()) for f, _ in FLAGS])
def test_flags(flags, named, refused):
    said = refused(**flags)
    assert all(word in said for word in named), said


TRANSFERS = [
    (dict(seeds="-1"), ["--seeds -1"]),
    (dict(control="random_mask"), ["--control random_mask", "--ticket", "--target_sparsity"]),
    (dict(target_sparsity="0.5"), ["--target_sparsity 0.5", "--ticket", "one_shot"]),
    (dict(target_sparsity="1.5", control="one_shot"), ["--target_sparsity 1.5", "0.7"]),
    (dict(connectivity=True), ["--connectivity", "--seeds 1 2"]),
    (dict(theta="/no/theta"), ["--theta /no/theta", "theta.safetensors"]),
    (dict(compare_with="/no/run"), ["--compare_with /no/run", "--output_dir"]),
    (dict(rewind="lr"), ["--rewind", "--help"]),
]


@pytest.mark.parametrize(("flags", "named"), TRANSFERS, ids=[" ".join(f) for f, _ in TRANSFERS])
def test_flags_of_a_transfer(flags, named, refused):
    from lth_scale import transfer

    said = refused(command=transfer, **({"target_sparsity": None} | flags))
    assert all(word in said for word in named), said


def test_a_transfer_into_the_directory_of_a_search(search, refused):
    from lth_scale import transfer

    search(max_steps=1)
    assert "another command" in refused(command=transfer, target_sparsity=None)


ROW = {"sentence": "good", "label": 1}
FILES = [
    ("", ["train.jsonl", "no rows"]),
    ("\n\n", ["no rows"]),
    ("{not json}\n", ["line 1", "no JSON"]),
    (json.dumps(ROW) + "\n" + json.dumps(ROW)[:-3], ["line 2", "no JSON"]),
    ("[1, 2]\n", ["line 1", "no JSON object"]),
    ('{"text": "x", "label": 1}\n', ["line 1", "'sentence' is missing"]),
    ('{"sentence": "x"}\n', ["'label' is missing"]),
    ('{"sentence": 3, "label": 1}\n', ["'sentence' holds 3"]),
    ('{"sentence": "x", "label": "pos"}\n', ["'label' holds 'pos'"]),
    ('{"sentence": "x", "label": true}\n', ["'label' holds True"]),
    ('{"sentence": "x", "label": -1}\n', ["label -1", "0 … 1"]),
    ('{"sentence": "x", "label": 2}\n', ["label 2", "0 … 1"]),
]


@pytest.mark.parametrize(("content", "named"), FILES, ids=[content[:24] or "empty" for content, _ in FILES])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_data_files(content, named, split, refused, tmp_path):
    for name in ("train", "validation"):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", [{"sentence": sentence(i), "label": i % 2} for i in range(9)])
    (tmp_path / f"data/{split}.jsonl").write_text(content)
    said = refused(dataset_path=tmp_path / "data")
    assert f"--dataset_path {tmp_path / 'data' / split}.jsonl" in said
    assert all(word in said for word in named[1:]), said


def test_a_missing_split_is_named(refused, tmp_path):
    write_jsonl(tmp_path / "data/train.jsonl", [ROW])
    assert "validation.jsonl is missing" in refused(dataset_path=tmp_path / "data")


def test_a_file_of_bytes_or_a_cut_archive(refused, tmp_path):
    write_jsonl(tmp_path / "data/validation.jsonl", [ROW])
    (tmp_path / "data/train.jsonl").write_bytes(b'{"sentence": "\xff\xfe", "label": 1}\n')
    assert "not UTF-8" in refused(dataset_path=tmp_path / "data")
    (tmp_path / "data/train.jsonl").unlink()
    (tmp_path / "data/train.jsonl.xz").write_bytes(lzma.compress(json.dumps(ROW).encode() * 99)[:40])
    assert "cannot be read" in refused(dataset_path=tmp_path / "data")


def test_too_little_text_for_one_block(refused, tmp_path):
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"data/{split}.jsonl", [{"text": "too short"}])
    assert "--max_seq_length 32" in refused(task="mlm", dataset_path=tmp_path / "data")


def damaged(tiny_bert, directory, change):
    shutil.copytree(tiny_bert, directory)
    change(directory)
    return directory


def drop_layer(directory):
    weights = load_file(directory / "model.safetensors")
    save_file(
        {name: w for name, w in weights.items() if "layer.1.output.dense" not in name}, directory / "model.safetensors"
    )


def only_a_pickle(directory):
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


MODELS = {
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ["model.safetensors"]),
    "cut weights": (lambda d: (d / "model.safetensors").write_bytes(b"\x08" * 50), ["--model_name_or_path"]),
    "no config": (lambda d: (d / "config.json").unlink(), ["config.json"]),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), ["--model_name_or_path"]),
    "no tokenizer": (lambda d: [p.unlink() for p in d.glob("token*")], ["--model_name_or_path"]),
    "only a pickle": (only_a_pickle, ["model.safetensors"]),
    "a layer is missing": (drop_layer, ["lacks encoder.layer.1.output.dense.weight"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_model_directories(case, refused, tiny_bert, tmp_path):
    change, named = MODELS[case]
    directory = damaged(tiny_bert, tmp_path / "model", change)
    said = refused(model_name_or_path=directory)
    assert f"--model_name_or_path {directory}" in said and all(word in said for word in named), said


def test_a_ticket_of_another_model(refused, tiny_bert, tmp_path):
    from transformers import AutoModel, BertConfig

    other = AutoModel.from_config(BertConfig.from_pretrained(tiny_bert, num_hidden_layers=3))
    path = tmp_path / "other.safetensors"
    Ticket({name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(other).items()}, "three-layers").save(
        path
    )
    said = refused(ticket=path)
    assert f"--ticket {path}" in said and "encoder.layer.2." in said and "three-layers" in said


def test_a_ticket_that_is_none(refused, tmp_path):
    (tmp_path / "t.safetensors").write_text("hello")
    assert f"--ticket {tmp_path / 't.safetensors'}" in refused(ticket=tmp_path / "t.safetensors")


def test_another_command_into_the_same_directory_names_the_flags_that_differ(search, refused):
    search()
    said = refused(seed=7, learning_rate=0.02)
    assert "--seed was 42, is 7" in said and "--learning_rate was 0.01, is 0.02" in said
    assert "per_device" not in said


def test_a_directory_with_somebody_elses_rounds_is_left_alone(refused, tmp_path):
    (tmp_path / "out/rounds").mkdir(parents=True)
    (tmp_path / "out/rounds/mine").write_text("precious")
    assert "no arguments.json" in refused()


def test_damaged_arguments_are_not_overwritten(refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/arguments.json").write_text("{")
    assert "damaged" in refused()


def test_as_a_process_it_takes_seconds_and_exits_with_2(command):
    started = time.monotonic()
    done = command("lth_scale.imp", "--task", "sst2", "--target_sparsity", "1.2")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--target_sparsity 1.2" in done.stderr
    assert time.monotonic() - started < 20  # a hang, not a measurement: it imports no torch


def test_without_a_network_the_papers_set_up_names_the_ways_out(command, tmp_path):
    done = command("lth_scale.imp", "--task", "mlm", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for way in ("google-bert/bert-base-uncased", "--preset demo", "--model_name_or_path DIR", "--dataset_path DIR"):
        assert way in done.stderr


@pytest.mark.parametrize(("module", "kind"), [("imp", "Arguments"), ("transfer", "Transfer")])
def test_help_is_complete(module, kind, command):
    from dataclasses import fields

    from lth_scale import arguments

    shown = " ".join(command(f"lth_scale.{module}", "--help").stdout.split())
    assert all(
        f"--{spec.name}" in shown and spec.metadata["help"][:20] in shown for spec in fields(getattr(arguments, kind))
    )

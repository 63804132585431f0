"""predictions.safetensors: the result of each validation example, beside metrics.json."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from conftest import sentence, write_jsonl
from safetensors import safe_open

from lth_scale.config import files, run_files
from lth_scale.tracking import predictions


def read(run: Path, pattern: str = "*/*") -> dict[str, dict[str, numpy.ndarray]]:
    """The arrays of the stages of a run, by their directory."""
    stages = sorted(path for path in run_files.stage_directories(run) if path.match(pattern))
    return {str(stage.relative_to(run)): predictions.read(stage) for stage in stages}


def rows_of(run: Path, table: str = "results.json") -> list[dict]:
    return json.loads((run / table).read_text())


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        numpy.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype
        for name in one
    )


@pytest.fixture
def learnable(tmp_path) -> dict[str, object]:
    """Flags of a search that learns to tell good from bad, in rows of several lengths."""
    for split, count in (("train", 64), ("validation", 23)):
        rows = [
            {"sentence": " ".join(["good" if i % 3 == 0 else "bad"] * (1 + i % 5)), "label": label}
            for i, label in enumerate(int(i % 3 == 0) for i in range(count))
        ]
        write_jsonl(tmp_path / f"learnable/{split}.jsonl", rows)
    return {"dataset_path": tmp_path / "learnable", "max_steps": 30}


def test_arrays_are_read_as_they_were_written(tmp_path):
    arrays = {
        "prediction": numpy.array([1, 0, 2], "int16"),
        "loss": numpy.array([0.5, 1.5], "float32"),
    }
    predictions.write(tmp_path, arrays)
    assert same(predictions.read(tmp_path), arrays)
    with safe_open(tmp_path / "predictions.safetensors", "numpy") as file:
        assert {*file.keys()} == {"prediction", "loss"}  # a format that runs no code


def test_without_a_file_there_are_no_arrays_and_a_damaged_one_is_named(tmp_path):
    assert predictions.read(tmp_path) == {}
    predictions.write(tmp_path, {})
    assert not [*tmp_path.iterdir()]
    path = tmp_path / "predictions.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"predictions\.safetensors is damaged"):
        predictions.read(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"damaged \(.*is not a regular file"):
        predictions.read(tmp_path)


def test_rounds_and_controls_keep_the_prediction_of_each_row(search, learnable):
    out = search(**learnable, control="random_mask", per_device_eval_batch_size=3)
    expected = [int(i % 3 == 0) for i in range(23)]
    kept = read(out)
    assert kept["rounds/00"]["prediction"].tolist() == expected  # it has learnt all of them
    assert "constant_prediction" not in rows_of(out)[0]
    assert {*kept} == {
        *(f"rounds/0{k}" for k in range(4)),
        *(f"controls/random_mask/0{k}" for k in (2, 3)),
    }
    for row, table in (
        *((row, f"rounds/0{row['round']}") for row in rows_of(out)),
        *((row, f"controls/random_mask/0{row['round']}") for row in rows_of(out, "controls.json")),
    ):
        arrays = kept[table]
        assert arrays["label"].tolist() == expected
        accuracy = (arrays["prediction"] == arrays["label"]).mean()
        assert accuracy == pytest.approx(row["eval"]["accuracy"])


def test_predictions_do_not_depend_on_the_evaluation_batch(search, learnable, tmp_path):
    runs = [
        read(search(**learnable, output_dir=tmp_path / str(size), per_device_eval_batch_size=size))
        for size in (3, 64)
    ]
    assert runs[0].keys() == runs[1].keys()
    assert all(same(runs[0][stage], runs[1][stage]) for stage in runs[0])


def test_each_seed_of_a_transfer_keeps_its_predictions(search, transfer):
    out = transfer(1, 2, ticket=search())
    kept = read(out)
    assert [*kept] == ["seeds/01", "seeds/02"]
    for row in rows_of(out):
        arrays = kept[f"seeds/0{row['seed']}"]
        accuracy = (arrays["prediction"] == arrays["label"]).mean()
        assert accuracy == pytest.approx(row["eval"]["accuracy"])
        assert {*row["trivial"]} == {"constant", "chance"}


def test_the_two_sets_of_mnli_are_kept_apart(search, tmp_path):
    for split, count in (("train", 16), ("validation_matched", 9), ("validation_mismatched", 7)):
        rows = [
            {"premise": sentence(i), "hypothesis": sentence(i + count), "label": (i + count) % 3}
            for i in range(count)
        ]
        write_jsonl(tmp_path / f"mnli/{split}.jsonl", rows)
    flags = {"task": "mnli", "dataset_path": tmp_path / "mnli", "target_sparsity": 0.1}
    out = search(**flags, per_device_eval_batch_size=2)
    for row, arrays in zip(rows_of(out), read(out).values(), strict=True):
        assert arrays["label"].tolist() == [(i + 9) % 3 for i in range(9)]
        assert arrays["label_mismatched"].tolist() == [(i + 7) % 3 for i in range(7)]
        for suffix in ("", "_mismatched"):
            correct = arrays[f"prediction{suffix}"] == arrays[f"label{suffix}"]
            assert correct.mean() == pytest.approx(row["eval"][f"accuracy{suffix}"])
        assert row["trivial"]["constant"].keys() == {"accuracy", "accuracy_mismatched"}
        assert [*row["eval"]] == ["accuracy", "accuracy_mismatched", "loss"]


def test_scores_and_blocks_of_other_tasks_are_kept(search, text_data, tmp_path):
    blocks = search(task="mlm", dataset_path=text_data, output_dir=tmp_path / "mlm")
    for row, arrays in zip(rows_of(blocks), read(blocks).values(), strict=True):
        assert {*arrays} == {"loss", "masked", "correct"}
        mean = arrays["loss"].sum() / arrays["masked"].sum()
        assert mean == pytest.approx(row["eval"]["loss"], rel=1e-5)
        assert {*row["trivial"]} == {"constant", "unigram", "chance"}


def test_two_ranks_write_the_file_of_one_process(small, text_data, command, tmp_path):
    """Untrained, because training over more ranks sums gradients in another order."""
    flags = dict(task="mlm", dataset_path=text_data, max_steps=0, target_sparsity=0.1)
    flags |= dict(per_device_eval_batch_size=3, max_train_samples=20)
    done = command("lth_scale.imp", *small(**flags, output_dir=tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    accelerate = [Path(sys.executable).with_name("accelerate"), "launch", "--num_processes", "2"]
    accelerate += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
    accelerate += ["--dynamo_backend", "no", "-m", "lth_scale.imp"]
    two = subprocess.run(
        [*accelerate, *small(**flags, output_dir=tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=400,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
    )
    assert two.returncode == 0, two.stderr
    for k in range(2):
        files_of_round = [
            (tmp_path / run / f"rounds/0{k}/predictions.safetensors").read_bytes()
            for run in ("one", "two")
        ]
        assert files_of_round[0] == files_of_round[1]
    assert len(read(tmp_path / "two")["rounds/00"]["masked"]) > 6  # some batches for each rank


@pytest.mark.parametrize("name", ["predictions.safetensors", "metrics.json", "complete"])
def test_a_run_killed_before_a_file_is_written_ends_like_an_uninterrupted_one(
    name, search, tmp_path, monkeypatch
):
    whole = search(output_dir=tmp_path / "whole")

    class Killed(BaseException):
        pass

    write_bytes, seen = files.write_bytes, []

    def die_in_round_one(path, content):
        if path.name == name and path.parent.name == "01":
            seen.append(path)
            raise Killed
        write_bytes(path, content)

    monkeypatch.setattr(files, "write_bytes", die_in_round_one)
    with pytest.raises(Killed):
        search(output_dir=tmp_path / "parts")
    assert seen and not (tmp_path / "parts/rounds/01/complete").exists()
    monkeypatch.setattr(files, "write_bytes", write_bytes)
    parts = search(output_dir=tmp_path / "parts")
    assert [*read(whole)] == [*read(parts)]
    for stage in read(whole):
        path = f"{stage}/predictions.safetensors"
        assert (whole / path).read_bytes() == (parts / path).read_bytes()


def test_a_damaged_file_is_named_and_a_missing_one_is_not(search):
    out = search()
    path = out / "rounds/02/predictions.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"rounds/02/predictions\.safetensors is damaged"):
        run_files.check_whole(out)
    path.unlink()  # as in runs of older versions
    run_files.check_whole(out)


def test_the_dense_round_of_another_search_brings_its_predictions(search, tmp_path):
    dense = search(output_dir=tmp_path / "dense", rewind_step="1", keep_theta="2")
    reused = search(output_dir=tmp_path / "reused", rewind_step="2", dense=dense)
    assert same(read(dense)["rounds/00"], read(reused)["rounds/00"]) and read(dense)["rounds/00"]
    (dense / "rounds/00/predictions.safetensors").unlink()
    older = search(output_dir=tmp_path / "older", rewind_step="2", dense=dense)
    assert read(older)["rounds/00"] == {} and read(older)["rounds/01"]


def test_a_run_that_an_older_version_began_is_continued(search, tmp_path, monkeypatch, capsys):
    archive = Path(__file__).with_name("begun_by_0.2.0.tar.xz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    flags = {"model_name_or_path": "model", "dataset_path": "data", "max_seq_length": 16}
    assert not any(read(Path("finished")).values())
    search(**flags, target_sparsity=0.2, output_dir="finished")
    shown = capsys.readouterr().out
    assert "| round |" in shown and "Trivial" not in shown and "One prediction" not in shown
    out = search(**flags, target_sparsity=0.2, output_dir="begun")
    kept = read(out)
    assert not kept["rounds/00"] and kept["rounds/01"] and kept["rounds/02"]
    assert ["trivial" in row for row in rows_of(out)] == [False, True, True]
    assert "Trivial predictors: constant accuracy" in capsys.readouterr().out


def test_trivial_scores_are_in_every_row_and_below_the_table(search, capsys):
    out = search(control="random_mask")
    rows = [*rows_of(out), *rows_of(out, "controls.json")]
    (trivial,) = {json.dumps(row["trivial"]) for row in rows}
    constant = json.loads(trivial)["constant"]["accuracy"]
    arrays = predictions.read(out / "rounds/00")
    assert constant == pytest.approx(numpy.bincount(arrays["label"]).max() / len(arrays["label"]))
    assert (
        f"Trivial predictors: constant accuracy {constant:.4f}; chance" in capsys.readouterr().out
    )


def test_a_network_that_predicts_one_class_is_named(search, tmp_path, caplog, capsys):
    """It cannot tell rows apart that are equal."""
    for split in ("train", "validation"):
        rows = [{"sentence": "the cat sat", "label": i % 2} for i in range(8)]
        write_jsonl(tmp_path / f"same/{split}.jsonl", rows)
    out = search(dataset_path=tmp_path / "same", control="random_mask")
    for row in [*rows_of(out), *rows_of(out, "controls.json")]:
        assert row["constant_prediction"] is True
    assert "round 01: the network gives one prediction for all validation rows" in caplog.text
    assert "One prediction for all validation rows: round 00, round 01, round 02, round 03" in (
        shown := capsys.readouterr().out
    )
    assert "One prediction for all validation rows: random_mask round 02" in shown

"""A push publishes local paths as their last names."""

import json
from pathlib import Path

import pytest

from lth_scale.config.arguments import flags_with
from lth_scale.shipping.publication import Publication, PublishedRun, bare


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("embedded", "embedded"),
        ("", ""),
        ("/a/b c/model", "model"),
        ("/a/b/model//", "model"),
        ("~/a/data", "data"),
        ("a/../b/data", "data"),
        (r"C:\Users\alice\data", "data"),
        (r"C:\Users\alice\data" "\\", "data"),
        ("file:///a/b%20c/my%20data", "my data"),
        ("file:/a/b", "b"),
        ("~", "local"),
        ("~alice", "local"),
        ("data", "data"),
        (r"\\host\share\x", "x"),
        ("/", "local"),
    ],
)
def test_a_path_is_published_as_its_last_name(path, name):
    assert bare(path) == name


def test_a_path_that_ends_in_dots_is_published_as_the_name_of_its_directory(tmp_path, monkeypatch):
    (tmp_path / "data/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "data")
    assert (bare("."), bare("deep/.."), bare("./")) == ("data", "data", "data")


HUB_NAMES = ["google-bert/bert-base-uncased", "bert-base-uncased", "embedded", ""]


def test_a_name_on_the_hub_is_published_whole_and_a_directory_by_its_last_name(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    public = Publication({})
    names = [*HUB_NAMES, "../a/b", "./a/b", "/x/y", "~/y", "a/b/c", "a/b/"]
    assert [public.model(name) for name in names] == [*HUB_NAMES, "b", "b", "y", "y", "c", "b"]


@pytest.mark.parametrize("where", ["elsewhere", "work/runs/mine", "work/runs", "work", "."])
def test_a_model_of_an_old_run_is_local_if_found_here_or_above_the_run(
    tmp_path, monkeypatch, where
):
    run, here = tmp_path / "work/runs/mine", tmp_path / "elsewhere"
    for directory in (run, here, tmp_path / where / "models/mine"):
        directory.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    public = Publication({"model_name_or_path": "models/mine"}, run)
    assert public.model("models/mine") == public.text("models/mine") == "mine"
    assert public.directory("models/mine").samefile(tmp_path / where / "models/mine")


@pytest.mark.parametrize(
    ("digests", "name"), [({"model": {}}, "mine"), ({"data": {}}, "models/mine")]
)
def test_the_runs_record_decides_whether_its_model_is_local(tmp_path, monkeypatch, digests, name):
    monkeypatch.chdir(tmp_path)
    if name == "models/mine":
        (tmp_path / name).mkdir(parents=True)
    flags = {"model_name_or_path": "models/mine", "digests": digests}
    assert Publication(flags, tmp_path).value(flags)["model_name_or_path"] == name


def test_flags_of_paths_are_declared_as_such():
    assert {"dataset_path", "output_dir", "ticket", "theta", "dense", "compare_with"} <= flags_with(
        "path"
    )


def test_values_and_texts_have_last_names_in_place_of_paths(tmp_path):
    model, run = tmp_path / "alice/model", tmp_path / "alice/run"
    rest = {"seed": 3, "task": "sst2"}
    flags = {"model_name_or_path": str(model), "dataset_path": "x/data", "run_name": f"{run}"}
    public = Publication(flags | rest, run)
    names = {"model_name_or_path": "model", "dataset_path": "data", "run_name": "run"}
    assert public.value(flags | rest | {"seeds": (1, 2)}) == names | rest | {"seeds": (1, 2)}
    assert public.text(f"{model}/x: in {run}, x/data/train.jsonl, and/or x/database") == (
        "model/x: in run, data/train.jsonl, and/or x/database"
    )
    assert public.text(f"token=abc in {Path.cwd()}/y") == "token=*** in local/y"
    kept = {
        "content": "/",
        "name_or_path": "google-bert/bert-base-uncased",
        "vocab_file": "vocab.txt",
    }
    assert public.value(kept) == kept
    assert public.value({"special_tokens_map_file": "/home/bob/map.json"}) == {
        "special_tokens_map_file": "map.json"
    }


def test_a_run_begun_under_an_earlier_name_is_published_under_the_current_one(search):
    out = search(score="accumulated_taylor", max_steps=1, schedule="one_shot", target_sparsity=0.1)
    arguments = json.loads((out / "arguments.json").read_text())
    (out / "arguments.json").write_text(json.dumps({**arguments, "score": "movement"}))
    run = PublishedRun(out / "rounds/01")
    assert "--score accumulated_taylor" in run.command and "movement" not in run.command

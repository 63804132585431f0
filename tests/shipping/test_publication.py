"""What a push publishes of local paths: last names."""

from pathlib import Path

import pytest

from lth_scale.config.arguments import flags_with
from lth_scale.shipping.publication import Publication, bare


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


def test_a_path_that_ends_in_dots_has_the_name_of_what_it_means(tmp_path, monkeypatch):
    (tmp_path / "data/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "data")
    assert (bare("."), bare("deep/.."), bare("./")) == ("data", "data", "data")


HUB_NAMES = ["google-bert/bert-base-uncased", "bert-base-uncased", "embedded", ""]


def test_a_name_on_the_hub_stays_whole_and_that_of_a_directory_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    public = Publication({})
    names = [*HUB_NAMES, "../a/b", "./a/b", "/x/y", "~/y", "a/b/c", "a/b/"]
    assert [public.model(name) for name in names] == [*HUB_NAMES, "b", "b", "y", "y", "c", "b"]


@pytest.mark.parametrize("where", ["elsewhere", "work/runs/mine", "work/runs", "work", "."])
def test_a_run_of_old_has_a_local_model_where_one_lies_here_or_above_the_run(
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
def test_what_a_run_recorded_of_its_model_counts_and_not_what_lies_here(
    tmp_path, monkeypatch, digests, name
):
    monkeypatch.chdir(tmp_path)
    if name == "models/mine":
        (tmp_path / name).mkdir(parents=True)
    flags = {"model_name_or_path": "models/mine", "digests": digests}
    assert Publication(flags, tmp_path).value(flags)["model_name_or_path"] == name


def test_every_flag_that_names_a_file_or_a_directory_is_known():
    assert {"dataset_path", "output_dir", "ticket", "theta", "dense", "compare_with"} <= flags_with(
        "path"
    )


def test_values_and_texts_hold_last_names_and_keep_the_rest(tmp_path):
    model, run = tmp_path / "alice/model", tmp_path / "alice/run"
    flags = {
        "model_name_or_path": str(model),
        "dataset_path": "x/data",
        "seed": 3,
        "task": "sst2",
        "run_name": f"{run}",
    }
    public = Publication(flags, run)
    assert public.value(flags | {"seeds": (1, 2)}) == {
        "model_name_or_path": "model",
        "dataset_path": "data",
        "seed": 3,
        "task": "sst2",
        "run_name": "run",
        "seeds": (1, 2),
    }
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

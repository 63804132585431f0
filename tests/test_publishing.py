"""What a push publishes of local paths: last names."""

from pathlib import Path

import pytest

from lth_scale.publishing import PATHS, Publication, bare, bare_model


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("embedded", "embedded"), ("", ""), ("/a/b c/model", "model"), ("/a/b/model//", "model"), ("~/a/data", "data"),
        ("a/../b/data", "data"), (r"C:\Users\alice\data", "data"), (r"C:\Users\alice\data" "\\", "data"),
        ("file:///a/b%20c/my%20data", "my data"), ("file:/a/b", "b"), ("~", "local"), ("~alice", "local"),
        ("data", "data"), (r"\\host\share\x", "x"), ("/", "local"),
    ],
)  # fmt: skip
def test_a_path_is_published_as_its_last_name(path, name):
    assert bare(path) == name


def test_a_path_that_ends_in_dots_has_the_name_of_what_it_means(tmp_path, monkeypatch):
    (tmp_path / "data/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "data")
    assert (bare("."), bare("deep/.."), bare("./")) == ("data", "data", "data")


def test_a_name_on_the_hub_stays_whole_and_a_directory_of_that_form_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["google-bert/bert-base-uncased", "bert-base-uncased", "embedded"]
    assert [bare_model(name) for name in [*names, "../a/b", "/x/y"]] == [*names, "b", "y"]
    (tmp_path / names[0]).mkdir(parents=True)
    assert bare_model(names[0]) == "bert-base-uncased"


def test_every_flag_that_names_a_file_or_a_directory_is_known():
    assert {"dataset_path", "output_dir", "ticket", "theta", "dense", "compare_with"} <= PATHS


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
        "model_name_or_path": "model", "dataset_path": "data", "seed": 3, "task": "sst2", "run_name": "run",
        "seeds": (1, 2),
    }  # fmt: skip
    assert public.text(f"{model}/x: in {run}, x/data/train.jsonl, and/or x/database") == (
        "model/x: in run, data/train.jsonl, and/or x/database"
    )
    assert public.text(f"token=abc in {Path.cwd()}/y") == "token=*** in local/y"
    kept = {"content": "/", "name_or_path": "google-bert/bert-base-uncased", "vocab_file": "vocab.txt"}
    assert public.value(kept) == kept
    assert public.value({"special_tokens_map_file": "/home/bob/map.json"}) == {"special_tokens_map_file": "map.json"}

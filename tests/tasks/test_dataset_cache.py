"""tasks/dataset_cache.py: entries that are damaged, or cannot be written."""

import os
from pathlib import Path

import datasets
import pytest

from lth_scale.config.errors import BadInput
from lth_scale.tasks import data

COLUMNS = {"sentence": "string", "label": "int64"}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def lengths(batch: dict, tokenizer) -> dict:
    return {"length": [len(text) for text in batch["sentence"]]}


def load(directory: Path, tokenizer) -> tuple[list, list]:
    """Rows, and what is made of them."""
    rows = data.load_local(directory / "train.jsonl", COLUMNS, (0, 1), None)
    return rows[:], data.encode(rows, lengths, tokenizer)[:]


@pytest.mark.parametrize("pattern", ["*.arrow", "cache-*.arrow"])
@pytest.mark.parametrize(
    "left", [0, 0.5, -8, None], ids=["empty", "half", "all but the end", "other bytes"]
)
def test_a_damaged_entry_is_made_anew_and_is_not_deleted(
    left, pattern, cache, sst2_data, tokenizer, caplog
):
    whole = load(sst2_data, tokenizer)
    damaged = {}
    for path in cache.rglob(pattern):
        content = path.read_bytes()
        keep = len(content) + left if left and left < 0 else int(len(content) * (left or 0))
        damaged[path] = os.urandom(len(content)) if left is None else content[:keep]
        path.write_bytes(damaged[path])
    for _ in range(2):
        assert load(sst2_data, tokenizer) == whole
    assert damaged and all(path.read_bytes() == content for path, content in damaged.items())
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    "lay",
    [
        lambda path: path.write_text(""),
        lambda path: path.symlink_to("gone/away"),
        lambda path: path.symlink_to(path),
        os.mkfifo,
    ],
    ids=["a file", "a link to nothing", "a link to itself", "a pipe"],
)
def test_a_cache_that_cannot_be_written_is_one_line(lay, cache, sst2_data, tokenizer):
    lay(cache)
    with pytest.raises(
        BadInput, match=rf"HF_DATASETS_CACHE {cache}: cannot be used \(.*\); set it to"
    ) as said:
        load(sst2_data, tokenizer)
    assert "\n" not in str(said.value)

"""data.py: what lies in the cache is what the files hold now."""

import json
import os
import shutil

from conftest import write_jsonl

from lth_scale.tasks import data, task
from lth_scale.tasks.glue import tokenize

COLUMNS = {"sentence": "string", "label": "int64"}


def test_rows_are_cached_by_content_not_by_place_size_or_time(tmp_path):
    here, there = (
        write_jsonl(tmp_path / name / "train.jsonl", [{"sentence": "good", "label": 1}]) for name in ("here", "there")
    )
    rows = data.load_local(here, COLUMNS, 2, None)
    os.utime(there, (1, 1))
    assert data.load_local(there, COLUMNS, 2, None).cache_files == rows.cache_files
    status = here.stat()
    write_jsonl(here, [{"sentence": "evil", "label": 0}])
    os.utime(here, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert data.load_local(here, COLUMNS, 2, None)[0] == {"sentence": "evil", "label": 0}


def test_tokens_are_cached_by_all_that_a_tokenizer_does_wherever_it_lies(tiny_bert, tmp_path, small):
    from lth_scale.arguments import parse

    def loaded(name):
        return task.load_tokenizer(parse(small(model_name_or_path=tmp_path / name), "t", "t"))

    def encoded(tokenizer):
        options = dict(texts=("sentence",), length=16, segments=False)
        return data.encode(rows, tokenize, tokenizer, **options)

    for name in ("uncased", "moved", "cased"):
        shutil.copytree(tiny_bert, tmp_path / name)
    path = tmp_path / "cased/tokenizer.json"
    state = json.loads(path.read_text())
    state["normalizer"] |= {"lowercase": False, "strip_accents": False}
    path.write_text(json.dumps(state))
    config = json.loads((tmp_path / "cased/tokenizer_config.json").read_text())
    (tmp_path / "cased/tokenizer_config.json").write_text(json.dumps(
        {name: value for name, value in config.items() if name not in ("do_lower_case", "strip_accents")}
        | {"tokenizer_class": "PreTrainedTokenizerFast"}
    ))  # fmt: skip
    rows = data.load_local(write_jsonl(tmp_path / "a.jsonl", [{"sentence": "The Cat", "label": 1}]), COLUMNS, 2, None)
    one, moved, cased = (loaded(name) for name in ("uncased", "moved", "cased"))
    assert one.get_vocab() == cased.get_vocab()
    first = encoded(one)
    assert encoded(moved).cache_files == first.cache_files == encoded(one).cache_files
    assert encoded(cased)["input_ids"][0] != first["input_ids"][0]

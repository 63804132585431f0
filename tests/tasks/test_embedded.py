"""The embedded model and data: their sizes, licences and scores."""

import json
import lzma

import pretrain_embedded as pretrain
import pytest
import torch
from transformers import AutoModelForMaskedLM

from lth_scale.tasks.locations import embedded_path


def size(kind: str) -> int:
    return sum(path.stat().st_size for path in embedded_path(kind).iterdir())


def test_the_sizes_are_within_their_limits():
    assert size("bert") <= 6e6
    assert size("mlm") <= 2e6


def test_the_model_has_4_layers_of_128_in_fp16():
    model = AutoModelForMaskedLM.from_pretrained(embedded_path("bert"))
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (4, 128, 8192)
    assert {weight.dtype for weight in model.parameters()} == {torch.float16}


def test_it_predicts_held_out_words_as_well_as_its_readme_says(tokenizer):
    from transformers import DataCollatorForLanguageModeling

    result = json.loads((embedded_path("bert") / "pretraining.json").read_text())
    documents = tokenizer(pretrain.read_books("validation"), add_special_tokens=False)["input_ids"]
    model = AutoModelForMaskedLM.from_pretrained(embedded_path("bert"), dtype=torch.float32)
    blocks = pretrain.pack(documents, tokenizer, pretrain.BLOCK)[:200]
    score = pretrain.evaluate(model, blocks, DataCollatorForLanguageModeling(tokenizer))
    assert score["accuracy"] == pytest.approx(result["history"][-1]["accuracy"], abs=0.03)
    assert (
        score["accuracy"]
        > 3 * result["unigram"]["accuracy"]
        > 100 * result["random_init"]["accuracy"]
    )
    assert (
        f"{result['history'][-1]['accuracy']:.4f}"
        in (embedded_path("bert") / "README.md").read_text()
    )


def test_the_reviews_have_a_licence_notice_and_balanced_labels():
    with lzma.open(embedded_path("sst2") / "train.jsonl.xz", "rt") as lines:
        labels = [json.loads(line)["label"] for line in lines]
    assert len(labels) == 8000 and 0.4 < sum(labels) / len(labels) < 0.6
    assert "MIT License" in (embedded_path("sst2") / "NOTICE").read_text()


def test_the_recipe_learns_within_a_few_steps(tmp_path, monkeypatch):
    """On the beginnings of the books, which are faster to read."""
    read = pretrain.read_books
    monkeypatch.setattr(pretrain, "read_books", lambda split: read(split)[:1000])
    monkeypatch.setattr(
        "sys.argv",
        [
            *("x", "--output_dir", str(tmp_path), "--max_steps", "6", "--short_steps", "4"),
            *("--eval_steps", "3", "--warmup_steps", "1", "--vocab_size", "1000"),
            *("--per_device_train_batch_size", "4"),
        ],
    )
    pretrain.main()
    result = json.loads((tmp_path / "pretraining.json").read_text())
    assert [row["step"] for row in result["history"]] == [3, 6]
    assert result["history"][-1]["loss"] < result["random_init"]["loss"]
    assert AutoModelForMaskedLM.from_pretrained(tmp_path).config.vocab_size == 1000

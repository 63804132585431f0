"""tasks/mlm.py: packing, masking, and a head that is applied to masked positions only."""

import copy

import numpy
import pytest
import torch
import transformers as hf
from conftest import sentence, write_jsonl
from datasets import Dataset
from torch import nn
from torch.nn import functional as F

from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.tasks import mlm, registry
from lth_scale.tasks.mlm import choose_positions, chosen_loss, pack

SIZES = dict(
    vocab_size=90, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
)
MODELS = {
    "bert": hf.BertConfig(**SIZES, max_position_embeddings=40),
    "roberta": hf.RobertaConfig(**SIZES, max_position_embeddings=40),
    "distilbert": hf.DistilBertConfig(vocab_size=90, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    "mpnet": hf.MPNetConfig(**SIZES, max_position_embeddings=40),
    "electra": hf.ElectraConfig(**SIZES, embedding_size=8, max_position_embeddings=40),
    "deberta": hf.DebertaConfig(**SIZES, max_position_embeddings=40),
    "deberta-v2": hf.DebertaV2Config(**SIZES, max_position_embeddings=40),
    "modernbert": hf.ModernBertConfig(
        **SIZES, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_loss_and_gradient_equal_those_of_the_full_head(family):
    torch.manual_seed(0)
    model = hf.AutoModelForMaskedLM.from_config(MODELS[family]).eval()
    ids = torch.randint(5, 90, (3, 20))
    labels = torch.where(torch.rand(3, 20) < 0.3, ids, -100)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits
    whole = F.cross_entropy(logits.view(-1, 90), labels.view(-1))
    expected = torch.autograd.grad(whole, list(model.base_model.parameters()), allow_unused=True)
    choose_positions(model)
    loss, chosen = chosen_loss(model, batch)
    gradients = torch.autograd.grad(loss, list(model.base_model.parameters()), allow_unused=True)
    assert chosen.shape == (int((labels != -100).sum()), 90)
    assert torch.allclose(loss, whole, rtol=1e-5)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, atol=1e-6)


def test_the_model_is_restored_after_the_loss():
    model = hf.AutoModelForMaskedLM.from_config(MODELS["bert"]).eval()
    ids = torch.randint(5, 90, (2, 10))
    before = model(input_ids=ids).logits
    choose_positions(model)
    chosen_loss(model, {"input_ids": ids, "labels": ids})
    assert torch.equal(model(input_ids=ids).logits, before)


class Engine(nn.Module):
    """Wraps a model and forwards its attributes, as DeepSpeed's engine and FSDP do."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, **inputs):
        return self.module(**inputs)


def test_copies_and_wrapped_models_are_independent():
    model = hf.AutoModelForMaskedLM.from_config(MODELS["bert"]).eval()
    choose_positions(model)
    teacher, engine = copy.deepcopy(model), Engine(Engine(model))
    ids = torch.randint(5, 90, (2, 10))
    batch = {"input_ids": ids, "labels": torch.where(torch.arange(10) < 3, ids, -100)}
    expected = chosen_loss(model, batch)[1]
    assert torch.equal(chosen_loss(engine, batch)[1], expected)
    assert torch.equal(chosen_loss(teacher, batch)[1], expected) and expected.shape == (6, 90)
    with torch.no_grad():
        teacher.cls.predictions.bias += 1
    torch.testing.assert_close(chosen_loss(teacher, batch)[1], expected + 1)
    assert torch.equal(chosen_loss(model, batch)[1], expected)


def test_blocks_are_the_text_in_order_between_special_tokens(tokenizer):
    texts = ["the cat sat on the mat .", "a dog ran far from the old house by the sea ."] * 3
    flat = [
        token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    blocks = pack({"text": texts}, tokenizer, 12)["input_ids"]
    assert len(blocks) == len(flat) // 10
    for i, block in enumerate(blocks):
        assert block == [
            tokenizer.cls_token_id,
            *flat[i * 10 : i * 10 + 10],
            tokenizer.sep_token_id,
        ]


def test_validation_masks_are_fixed_and_cover_15_percent(small, text_data):
    args = parse(small(task="mlm", dataset_path=text_data))
    first, second = (registry.load_task(args) for _ in range(2))
    assert first.validation["labels"] == second.validation["labels"]
    labels = numpy.array(first.validation["labels"])
    assert 0.08 < (labels != -100).mean() < 0.22
    assert isinstance(first.train, Dataset) and {len(ids) for ids in first.train["input_ids"]} == {
        32
    }


def test_the_score_is_accuracy_and_mean_loss_over_masked_tokens(small, text_data):
    task = registry.load_task(parse(small(task="mlm", dataset_path=text_data)))
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
    batch = {"labels": torch.tensor([[0, -100, 1], [1, -100, -100]])}
    row = task.rows(logits, batch)
    assert row.shape == (3, 3) and row[:, :2].tolist() == [[0, 0], [1, 1], [0, 1]]
    right = [True, True, False]
    losses = [-F.log_softmax(logits, -1)[i, y].item() for i, y in enumerate([0, 1, 1])]
    assert task.score(row) == pytest.approx({"accuracy": sum(right) / 3, "loss": sum(losses) / 3})
    both = task.score(numpy.concatenate([row, row]))
    assert both == pytest.approx(task.score(row))


def test_validation_without_a_masked_token_is_refused(small, tmp_path, monkeypatch):
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"d/{split}.jsonl", [{"text": "the cat sat on the mat ."}])
    monkeypatch.setattr(mlm, "mask_for_evaluation", mask_nothing)
    with pytest.raises(BadInput, match="no token of validation is masked"):
        registry.load_task(parse(small(task="mlm", dataset_path=tmp_path / "d", max_seq_length=8)))


def mask_nothing(batch: dict, tokenizer, seed: int) -> dict:
    return {
        "input_ids": batch["input_ids"],
        "labels": [[-100] * len(ids) for ids in batch["input_ids"]],
    }


@pytest.mark.parametrize("name", ["train.txt", "train.jsonl", "train.csv"])
def test_own_text_gives_the_blocks_of_the_same_rows(name, small, tmp_path, text_data):
    texts = [sentence(i) for i in range(120)]
    path = tmp_path / name
    if name.endswith(".jsonl"):
        write_jsonl(path, [{"id": i, "text": text} for i, text in enumerate(texts)])
    else:
        path.write_text("\n".join(["text", *texts] if name.endswith(".csv") else texts) + "\n")
    files = {"train_file": path, "validation_file": path, "dataset_path": None}
    ours = registry.load_task(parse(small(task="fill-mask", max_train_samples=9, **files)))
    theirs = registry.load_task(parse(small(task="mlm", dataset_path=text_data)))
    assert len(ours.train) == 9
    assert ours.train.to_dict() == theirs.train.select(range(9)).to_dict()


def test_a_share_of_own_text_can_be_held_out(small, tmp_path):
    (tmp_path / "all.txt").write_text("\n".join(sentence(i) for i in range(200)))
    flags = {"train_file": tmp_path / "all.txt", "dataset_path": None}
    task = registry.load_task(
        parse(small(task="fill-mask", validation_split_percentage=25, **flags))
    )
    assert 2 < len(task.train) / len(task.validation) < 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}, {"text": None}], "column 'text', row 2: null is no text; write a string"),
        ([{"a": "x", "b": "y"}], "columns 'a', 'b' hold texts; choose one with --text_column_name"),
        ([{"a": 1}], "none of the columns 'a' holds texts; use a text file"),
        ([{"text": "a"}], "has too little text for one block; add text, or use a smaller length"),
    ],
)
def test_own_text_that_cannot_be_used_is_refused(rows, message, small, tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    files = {"train_file": path, "validation_file": path, "dataset_path": None}
    with pytest.raises(BadInput) as error:
        registry.load_task(parse(small(task="fill-mask", **files)))
    assert "train.jsonl" in str(error.value) and message in str(error.value)

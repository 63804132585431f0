"""tasks/registry.py: a third party's task is searched like the paper's own."""

import json
from dataclasses import dataclass, field

import numpy
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lth_scale import Ticket, imp
from lth_scale.config.defaults import DEFAULTS, GLUE_DEFAULTS
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import resolve
from lth_scale.tasks import data
from lth_scale.tasks.loading import load_model, load_tokenizer
from lth_scale.tasks.registry import TASKS, TaskKind, register_task
from lth_scale.tasks.task import Batch, Predictions, Task, label_config
from lth_scale.tracking import predictions

KIND = TaskKind(
    load=lambda args: load_tagging(args),
    dataset=("somebody/tags", "default"),
    metrics=("correct",),
    texts=("sentence",),
    labels=("even", "odd"),
    pipeline="token-classification",
    auto_class="AutoModelForTokenClassification",
)


@dataclass
class Tagging:
    """Tags each token with the parity of its id. Inherits from no class of the package."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fresh: frozenset[str]
    train: Dataset
    validation: Dataset
    remark: str = ""
    revision: str = ""
    grouped: bool = True
    more: dict[str, Dataset] = field(default_factory=dict)

    def collate(self, rows: list[dict]) -> Batch:
        return DataCollatorForTokenClassification(self.tokenizer)(rows)

    eval_collate = collate

    def loss(self, model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(**batch)
        return output.loss, output.logits

    def rows(self, outputs: torch.Tensor, batch: Batch) -> numpy.ndarray:
        tagged = batch["labels"] != -100
        logits, labels = outputs[tagged].float(), batch["labels"][tagged]
        losses = F.cross_entropy(logits, labels, reduction="none")
        correct = (logits.argmax(-1) == labels).double()
        return torch.stack([correct, losses.double()], dim=1).cpu().numpy()

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        return {"correct": rows[:, 0].mean(), "loss": rows[:, 1].mean()}


class CountingTagging(Tagging):
    """Also keeps predictions, and knows a trivial score."""

    def predictions(self, table: numpy.ndarray, rows: Dataset, order: numpy.ndarray) -> Predictions:
        """The number of correct tags of each row, of which each token has one."""
        lengths = numpy.array([len(ids) for ids in rows["input_ids"]])
        row = numpy.repeat(order, lengths[order])
        correct = numpy.bincount(row, table[:, 0], len(rows)).astype("int32")
        return Predictions({"correct": correct, "tokens": lengths.astype("int32")}, False)

    def trivial(self) -> dict[str, dict[str, float]]:
        return {"always even": {"correct": 0.5}}


def tag(batch: dict, tokenizer: PreTrainedTokenizerBase, length: int) -> dict:
    encoded = tokenizer(batch["sentence"], truncation=True, max_length=length)
    return {**encoded, "labels": [[id % 2 for id in ids] for ids in encoded["input_ids"]]}


def load_tagging(args) -> Task:
    tokenizer = load_tokenizer(args)
    loaded = load_model(
        args, AutoModelForTokenClassification, tokenizer, **label_config(KIND.labels)
    )
    splits = data.load_splits(args, {"sentence": "string"})
    train, validation = (
        data.encode(splits[split], tag, tokenizer, length=args.max_seq_length)
        for split in KIND.splits
    )
    kind = CountingTagging if args.run_name == "counting" else Tagging
    return kind(loaded.model, tokenizer, loaded.fresh, train, validation)


@pytest.fixture
def tagging(monkeypatch):
    """The task, registered for one test."""
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    monkeypatch.setitem(DEFAULTS, "tagging", {})
    del DEFAULTS["tagging"]
    register_task("tagging", KIND, learning_rate=0.01)
    return "tagging"


def test_a_registered_task_can_be_searched(tagging, tiny_bert, sst2_data, tmp_path):
    given = {
        "task": tagging,
        "model_name_or_path": str(tiny_bert),
        "dataset_path": str(sst2_data),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "target_sparsity": 0.2,
        "report_to": "none",
    }
    args = resolve(given)
    assert args.learning_rate == 0.01 and args.max_seq_length == GLUE_DEFAULTS["max_seq_length"]
    imp.run(args)
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert len(rows) == 3 and all([*row["eval"]] == ["correct", "loss"] for row in rows)
    assert not [*tmp_path.glob("out/rounds/*/predictions.safetensors")]
    assert not any("trivial" in row or "constant_prediction" in row for row in rows)
    ticket = Ticket.load(tmp_path / "out/ticket.safetensors")
    assert (ticket.task, round(ticket.sparsity, 2)) == (tagging, 0.2)


def test_a_registered_task_may_keep_predictions_and_know_trivial_scores(
    tagging, tiny_bert, sst2_data, tmp_path
):
    given = {
        "task": tagging,
        "run_name": "counting",
        "model_name_or_path": str(tiny_bert),
        "dataset_path": str(sst2_data),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "target_sparsity": 0.1,
        "per_device_eval_batch_size": 3,
        "report_to": "none",
    }
    imp.run(resolve(given))
    for row in json.loads((tmp_path / "out/results.json").read_text()):
        arrays = predictions.read(tmp_path / f"out/rounds/0{row['round']}")
        assert arrays["correct"].sum() / arrays["tokens"].sum() == row["eval"]["correct"]
        assert (arrays["correct"] <= arrays["tokens"]).all()
        assert row["trivial"] == {"always even": {"correct": 0.5}}


def test_a_name_is_registered_once(tagging):
    with pytest.raises(ValueError, match="tagging"):
        register_task(tagging, KIND)


def test_invalid_rows_of_a_registered_task_are_refused_with_the_line(tagging, tiny_bert, tmp_path):
    for split in KIND.splits:
        (tmp_path / f"{split}.jsonl").write_text('{"text": "a"}\n')
    args = resolve(
        {"task": tagging, "model_name_or_path": str(tiny_bert), "dataset_path": str(tmp_path)}
    )
    with pytest.raises(BadInput, match="line 1: column 'sentence' is missing"):
        TASKS[tagging].load(args)

"""tasks/task.py: what a model's config says of its outputs is neither here nor there."""

import json
import shutil

import pytest
import torch

from lth_scale import tasks
from lth_scale.arguments import parse
from lth_scale.training import take

ODD = [
    {"return_dict": False}, {"output_attentions": True}, {"output_hidden_states": True}, {"torchscript": True},
    {"use_cache": False}, {"chunk_size_feed_forward": 3}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"},
    {"id2label": {"0": "a", "1": "b", "2": "c"}}, {"architectures": [7, None]},
    {"return_dict": False, "output_attentions": True, "output_hidden_states": True},
]  # fmt: skip


def outcome(flags: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and outputs of a batch."""
    task = tasks.load(parse(flags, "t", "t"))
    batch = task.eval_collate(take(task.validation, [0, 1, 2, 3]))
    with torch.no_grad():
        return task.loss(task.model.eval(), batch)


@pytest.fixture
def odd_model(tiny_bert, tmp_path):
    """A copy of the tiny model with these fields in its config."""

    def make(**odd):
        shutil.copytree(tiny_bert, tmp_path / "model")
        path = tmp_path / "model/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))
        return tmp_path / "model"

    return make


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_config_that_asks_for_other_outputs_changes_no_score(odd, odd_model, small):
    plain, found = outcome(small()), outcome(small(model_name_or_path=odd_model(**odd)))
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


@pytest.mark.parametrize("odd", [ODD[-1]], ids=str)
def test_nor_does_it_in_masked_language_modelling(odd, odd_model, small, text_data):
    flags = {"task": "mlm", "dataset_path": text_data}
    plain, found = outcome(small(**flags)), outcome(small(**flags, model_name_or_path=odd_model(**odd)))
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification", "no such thing"])
def test_the_task_decides_what_kind_of_problem_it_is(kind, odd_model, small):
    plain, found = outcome(small()), outcome(small(model_name_or_path=odd_model(problem_type=kind)))
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))

"""tasks/loading.py: config fields that change no score, and configs that are refused."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig

from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.shipping.export.loading import read_config
from lth_scale.tasks import registry
from lth_scale.tasks.loading import load_tokenizer
from lth_scale.training.batches import select_rows

ODD = [
    {"return_dict": False},
    {"output_attentions": True},
    {"output_hidden_states": True},
    {"torchscript": True},
    {"use_cache": False},
    {"chunk_size_feed_forward": 3},
    {"gradient_checkpointing": True},
    {"dtype": "bfloat16"},
    {"id2label": {"0": "a", "1": "b", "2": "c"}},
    {"architectures": [7, None]},
    {"return_dict": False, "output_attentions": True, "output_hidden_states": True},
]


def outcome(flags: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and outputs of a batch."""
    task = registry.load_task(parse(flags))
    batch = task.eval_collate(select_rows(task.validation, [0, 1, 2, 3]))
    with torch.no_grad():
        return task.loss(task.model.eval(), batch)


@pytest.fixture
def odd_model(tiny_bert, tmp_path):
    """Copy the tiny model and set these fields in its config."""

    def make(**odd):
        shutil.copytree(tiny_bert, tmp_path / "model")
        path = tmp_path / "model/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))
        return tmp_path / "model"

    return make


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_config_fields_about_outputs_change_no_score(odd, odd_model, small):
    plain, edited = outcome(small()), outcome(small(model_name_or_path=odd_model(**odd)))
    assert all(torch.equal(a, b) for a, b in zip(plain, edited, strict=True))


@pytest.mark.parametrize("odd", [ODD[-1]], ids=str)
def test_config_fields_about_outputs_change_no_score_of_mlm(odd, odd_model, small, text_data):
    flags = {"task": "mlm", "dataset_path": text_data}
    plain, edited = (
        outcome(small(**flags)),
        outcome(small(**flags, model_name_or_path=odd_model(**odd))),
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, edited, strict=True))


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification", "no such thing"])
def test_the_task_determines_the_problem_type(kind, odd_model, small):
    plain, edited = (
        outcome(small()),
        outcome(small(model_name_or_path=odd_model(problem_type=kind))),
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, edited, strict=True))


MANY = [
    *(
        {"num_labels": value}
        for value in (99999999999, 100_001, 0, -1, "x", 2.0, True, None, [3], 10**400)
    ),
    {"id2label": {str(i): "a" for i in range(100_001)}},
    {"num_hidden_layers": 10**11},
    {"text_config": {"num_labels": 10**11}},
    {"model_type": "modernbert", "num_hidden_layers": 10**11},
]


@pytest.mark.parametrize("odd", MANY, ids=lambda odd: str(odd)[:40])
def test_an_impossible_count_is_refused_before_the_config_is_made(
    odd, odd_model, small, monkeypatch
):
    directory = odd_model(**odd)
    monkeypatch.setattr(
        AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("a config was made")
    )
    name = max(odd, key=lambda key: key != "model_type")
    with pytest.raises(
        BadInput, match=f"--model_name_or_path .*{name.replace('text_config', 'num_labels')}"
    ):
        load_tokenizer(parse(small(model_name_or_path=directory)))
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(str(directory))


@pytest.mark.parametrize("odd", [{"num_labels": 1}, {"num_labels": 3, "id2label": None}], ids=str)
def test_possible_counts_are_accepted(odd, odd_model, small):
    load_tokenizer(parse(small(model_name_or_path=odd_model(**odd))))


DECODERS = {
    "is_decoder": True,
    "add_cross_attention": True,
    "causal": 1,
    "quantization_config": {"bits": 8},
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_or_quantized_network_is_refused(name, odd_model, small):
    directory = odd_model(**{name: DECODERS[name]})
    with pytest.raises(
        BadInput, match=rf"config\.json has {name} .*; (set it to false|use the network before)"
    ):
        load_tokenizer(parse(small(model_name_or_path=directory)))


def test_a_config_with_its_own_name_of_the_weights_is_refused(odd_model, small):
    directory = odd_model(transformers_weights="other.safetensors")
    with pytest.raises(BadInput, match="has transformers_weights"):
        load_tokenizer(parse(small(model_name_or_path=directory)))

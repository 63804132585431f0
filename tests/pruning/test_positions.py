"""Layers and kinds of matrices by the names of their parameters, without tables."""

from collections import Counter

import pytest
from transformers import CONFIG_MAPPING, AutoModel
from zoo import ZOO

from lth_scale.pruning.positions import position
from lth_scale.pruning.prunable_set import prunable

BERT = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention output",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
}
NAMES = {  # of other architectures
    "transformer.layer.1.attention.q_lin.weight": ("1", "query"),
    "layers.11.self_attn.v_proj.weight": ("11", "value"),
    "encoder.layer.0.attention.attn.k.weight": ("0", "key"),
    "encoder.layer.2.attention.self.query_global.weight": ("2", "attention query global"),
    "h.3.attn.c_attn.weight": ("3", "attn c attn"),
    "layers.5.mlp.Wi.weight": ("5", "mlp Wi"),
}


@pytest.mark.parametrize(("end", "kind"), BERT.items())
def test_the_kinds_of_bert_are_those_of_its_papers(end, kind):
    assert position(f"encoder.layer.10.{end}.weight") == ("10", kind)


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_other_architectures_need_no_table(name, expected):
    assert position(name) == expected


def test_a_pooler_is_outside_of_the_layers_and_any_name_has_a_kind():
    assert position("pooler.dense.weight") == ("", "pooler")
    assert position("dense.weight") == ("", "dense") and position("odd") == ("", "odd")


@pytest.mark.parametrize("name", ["bert", "distilbert", "albert", "deberta-v2", "luke", "xlm"])
def test_two_matrices_of_a_layer_have_two_kinds(name):
    family = ZOO[name]
    model = AutoModel.from_config(CONFIG_MAPPING[family.kind](**family.config))
    positions = Counter(map(position, prunable(model)))
    assert positions and max(positions.values()) == 1

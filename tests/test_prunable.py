"""prunable.py: the prunable set by structure, for every family of encoders we name."""

import pytest
import torch
import transformers as hf
from torch import nn

from lth_scale.prunable import prunable
from lth_scale.ticket import Ticket

LAYERS, HIDDEN, WIDE = 2, 16, 32
COMMON = {
    "vocab_size": 120, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": WIDE, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
BLOCK = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * WIDE
CONFIGS = {
    "bert": hf.BertConfig(**COMMON),
    "roberta": hf.RobertaConfig(**COMMON),
    "distilbert": hf.DistilBertConfig(
        vocab_size=120, dim=HIDDEN, n_layers=LAYERS, n_heads=2, hidden_dim=WIDE, max_position_embeddings=40
    ),
    "mpnet": hf.MPNetConfig(**COMMON),
    "electra": hf.ElectraConfig(**COMMON, embedding_size=8),
    "deberta": hf.DebertaConfig(**COMMON, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta-v2": hf.DebertaV2Config(**COMMON, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "modernbert": hf.ModernBertConfig(
        **COMMON, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2, global_attn_every_n_layers=1
    ),
}
# matrices a layer and weights in all, counted by hand from the architectures
EXPECTED = {
    "bert": (6, LAYERS * BLOCK),
    "roberta": (6, LAYERS * BLOCK),
    "distilbert": (6, LAYERS * BLOCK),
    "mpnet": (6, LAYERS * BLOCK),
    "electra": (6, LAYERS * BLOCK),
    # q, k, v in one matrix; two position projections a layer
    "deberta": (6, LAYERS * (BLOCK + 2 * HIDDEN * HIDDEN)),
    "deberta-v2": (8, LAYERS * (BLOCK + 2 * HIDDEN * HIDDEN)),
    # Wqkv, Wo, and a gated MLP whose first matrix is twice as wide
    "modernbert": (4, LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * WIDE)),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_the_set_is_every_linear_of_the_layers_and_nothing_else(family):
    model = hf.AutoModelForMaskedLM.from_config(CONFIGS[family])
    found = prunable(model)
    matrices, weights = EXPECTED[family]
    assert (len(found), sum(w.numel() for w in found.values())) == (matrices * LAYERS, weights)
    tied = {
        id(parameter)
        for parameter in (*model.get_input_embeddings().parameters(), model.get_output_embeddings().weight)
    }
    assert all(w.ndim == 2 and id(w) not in tied and "embed" not in name for name, w in found.items())
    order = [name for name, _ in model.base_model.named_parameters()]
    assert list(found) == sorted(found, key=order.index)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_ticket_moves_from_the_mlm_head_to_the_classification_head(family):
    mlm = hf.AutoModelForMaskedLM.from_config(CONFIGS[family])
    classifier = hf.AutoModelForSequenceClassification.from_config(CONFIGS[family])
    torch.manual_seed(0)
    ticket = Ticket({name: torch.rand(w.shape) > 0.5 for name, w in prunable(mlm).items()})
    ticket.apply(classifier)
    weights = prunable(classifier)
    for name, mask in ticket.masks.items():
        assert not weights[name][~mask].any() and weights[name][mask].any()
    for name in set(weights) - set(ticket.masks):
        assert name.startswith("pooler.") and weights[name].all()


def test_bert_base_has_73_matrices_with_the_pooler_and_72_without():
    with torch.device("meta"):
        base = hf.BertModel(hf.BertConfig())
        bare = hf.BertForMaskedLM(hf.BertConfig())
    assert (len(prunable(base)), sum(w.numel() for w in prunable(base).values())) == (73, 85_524_480)
    assert (len(prunable(bare)), sum(w.numel() for w in prunable(bare).values())) == (72, 84_934_656)


def test_a_network_without_layers_has_nothing_to_prune():
    assert prunable(nn.Sequential(nn.Linear(3, 3))) == {}

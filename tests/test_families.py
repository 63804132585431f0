"""A whole search on every family of encoders that we name, with both kinds of heads."""

import json

import pytest
import torch
import transformers as hf
from transformers import AutoModelForMaskedLM

from lth_scale import Ticket
from lth_scale.prunable import prunable

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
ROOM = {**SIZES, "max_position_embeddings": 40}
FAMILIES = {
    "bert": (hf.BertConfig, ROOM),
    "roberta": (hf.RobertaConfig, ROOM),
    "distilbert": (
        hf.DistilBertConfig,
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40},
    ),
    "mpnet": (hf.MPNetConfig, ROOM),
    "electra": (hf.ElectraConfig, {**ROOM, "embedding_size": 8}),
    "deberta": (hf.DebertaConfig, {**ROOM, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": (hf.DebertaV2Config, {**ROOM, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "modernbert": (
        hf.ModernBertConfig,
        {**ROOM, "cls_token_id": 2, "sep_token_id": 3, "global_attn_every_n_layers": 1},
    ),
}


@pytest.fixture
def directory(request, tokenizer, tmp_path):
    """A masked-LM checkpoint of the family, with the embedded vocabulary."""
    kind, sizes = FAMILIES[request.param]
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(
        kind(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    ).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("directory", FAMILIES, indirect=True)
@pytest.mark.parametrize("task", ["mlm", "mrpc"])
def test_a_search_runs_and_its_network_loads_back(task, directory, search, text_data, tmp_path):
    from conftest import sentence, write_jsonl

    for split in ("train", "validation"):
        rows = [{"sentence1": sentence(i), "sentence2": sentence(i + 1), "label": i % 2} for i in range(16)]
        write_jsonl(tmp_path / f"pairs/{split}.jsonl", rows)
    data = text_data if task == "mlm" else tmp_path / "pairs"
    # longer than any of them has positions for: it must be shortened, not crash
    out = search(task=task, model_name_or_path=directory, dataset_path=data, max_steps=1, max_seq_length=64)
    ticket = Ticket.load(out / "ticket.safetensors")
    rows = json.loads((out / "results.json").read_text())
    assert rows[-1]["pruned"] == ticket.pruned == round(0.3 * ticket.prunable)
    auto = hf.AutoModelForMaskedLM if task == "mlm" else hf.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(out / "rounds/03/model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(not weight[~ticket.masks[name]].any() for name, weight in prunable(model).items())

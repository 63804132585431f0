"""Searches and transfers where an architecture departs from BERT: Conv1D, convolutions, poolers."""

import json

import pytest
import torch
import transformers as hf
from zoo import SIZES

from lth_scale import Ticket
from lth_scale.config.errors import BadInput
from lth_scale.pruning.prunable_set import prunable

ROOM = {**SIZES, "max_position_embeddings": 40}


@pytest.fixture
def saved(tokenizer, tmp_path):
    """Save a network of this class with the embedded vocabulary; returns its directory."""

    def save(kind, config, **sizes):
        torch.manual_seed(0)
        network = kind(
            config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
        )
        network.save_pretrained(tmp_path / "saved")
        tokenizer.save_pretrained(tmp_path / "saved")
        return tmp_path / "saved"

    return save


GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}


@pytest.mark.parametrize(
    "flags", [{}, {"scope": "layerwise"}, {"score": "accumulated_taylor"}, {"control": "one_shot"}]
)
def test_a_search_prunes_the_conv1d_of_gpt2(flags, saved, search):
    model = saved(hf.GPT2ForSequenceClassification, hf.GPT2Config, **GPT2)
    out = search(
        model_name_or_path=model, max_steps=1, target_sparsity=0.5, prune_rate=0.25, **flags
    )
    ticket = Ticket.load(out / "ticket.safetensors")
    weights = prunable(
        hf.AutoModelForSequenceClassification.from_pretrained(out / "rounds/02/model")
    )
    assert {name: tuple(w.shape) for name, w in weights.items() if ".0." in name} == {
        "h.0.attn.c_attn.weight": (16, 48),
        "h.0.attn.c_proj.weight": (16, 16),
        "h.0.mlp.c_fc.weight": (16, 64),
        "h.0.mlp.c_proj.weight": (64, 16),
    }
    total = 2 * 12 * 16 * 16
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    assert zeros == ticket.pruned == round(0.5 * total) and ticket.prunable == total
    assert (
        ticket.arguments["ignore"]
        == []
        == json.loads((out / "arguments.json").read_text())["ignore"]
    )


@pytest.mark.parametrize("pattern", ["2:4", "block:4x1"])
@pytest.mark.parametrize("control", ["none", "one_shot"])
def test_patterns_of_a_conv1d_go_along_its_inputs(pattern, control, saved, search):
    model = saved(hf.GPT2ForSequenceClassification, hf.GPT2Config, **GPT2)
    out = search(
        model_name_or_path=model,
        max_steps=1,
        target_sparsity=0.5,
        prune_rate=0.5,
        pattern=pattern,
        control=control,
    )
    stage = "rounds/01" if control == "none" else "controls/one_shot/01"
    for mask in Ticket.load(out / stage / "ticket.safetensors").masks.values():
        turned = mask.T.contiguous()  # (outputs, inputs)
        tiles = (
            turned.view(-1, 4)
            if pattern == "2:4"
            else turned.view(turned.shape[0] // 4, 4, -1).transpose(1, 2)
        )
        assert set(tiles.reshape(-1, 4).sum(1).tolist()) <= ({2} if pattern == "2:4" else {0, 4})


def test_a_wide_convolution_is_refused_unless_it_is_ignored(saved, search, transfer, tmp_path):
    model = saved(
        hf.DebertaV2ForSequenceClassification, hf.DebertaV2Config, **ROOM, conv_kernel_size=3
    )
    with pytest.raises(
        BadInput, match=r"encoder\.conv\.conv\.weight \(Conv1d, 16×16×3, 768 numbers\)"
    ):
        search(model_name_or_path=model)
    assert not (tmp_path / "out").exists()
    flags = {"model_name_or_path": model, "max_steps": 1}
    out = search(**flags, ignore=r"encoder\.conv\.")
    ticket = Ticket.load(out / "ticket.safetensors")
    assert ticket.arguments["ignore"] == [r"encoder\.conv\."] and not any(
        "conv" in name for name in ticket.masks
    )
    # a transfer takes over what its ticket left out, and may not leave out what that prunes
    moved = transfer(**flags, ticket=out)
    assert json.loads((moved / "arguments.json").read_text())["ignore"] == [r"encoder\.conv\."]
    row = json.loads((moved / "results.json").read_text())[0]
    assert (row["pruned"], row["prunable"]) == (ticket.pruned, ticket.prunable)
    with pytest.raises(
        BadInput, match=r"prunes encoder\.layer\S+output\.dense\.weight, which --ignore conv output"
    ):
        transfer(**flags, ticket=out, ignore=["conv", "output"], output_dir=tmp_path / "other")


def test_an_ignored_matrix_stays_dense(tiny_bert, search, transfer, tmp_path):
    out = search(ignore=["query"], max_steps=1)
    ticket = Ticket.load(out / "ticket.safetensors")
    assert len(ticket.masks) == 10 and not any("query" in name for name in ticket.masks)
    model = hf.AutoModelForSequenceClassification.from_pretrained(out / "rounds/03/model")
    assert all(weight.all() for name, weight in prunable(model).items() if name not in ticket.masks)
    assert Ticket.load(out / "ticket.safetensors").apply(model) is model
    for control in ("one_shot", "random_mask"):
        moved = transfer(
            ignore=["query"],
            max_steps=1,
            control=control,
            target_sparsity=0.5,
            output_dir=tmp_path / control,
        )
        assert json.loads((moved / "results.json").read_text())[0]["pruned"] == round(
            0.5 * (ticket.prunable)
        )


@pytest.mark.parametrize("kind", ["t5", "bart", "led"])
@pytest.mark.parametrize("task", ["sst2", "squad", "mlm"])
def test_an_encoder_decoder_is_refused_for_every_task(kind, task, saved, search):
    sizes = {
        "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
        "led": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "attention_window": 4},
    }[kind]
    config, model = {
        "t5": (hf.T5Config, hf.T5Model),
        "bart": (hf.BartConfig, hf.BartModel),
        "led": (hf.LEDConfig, hf.LEDModel),
    }[kind]
    message = rf"--model_name_or_path .*: is an encoder-decoder \({kind}\), and only encoders are"
    with pytest.raises(BadInput, match=message):
        search(task=task, model_name_or_path=saved(model, config, **sizes))


def test_a_decoder_has_no_masked_language_model(saved, search, text_data):
    model = saved(hf.GPT2LMHeadModel, hf.GPT2Config, **GPT2)
    with pytest.raises(
        BadInput, match="--task mlm needs a network that AutoModelForMaskedLM supports"
    ):
        search(task="mlm", model_name_or_path=model, dataset_path=text_data)


def test_a_fresh_pooler_is_not_pruned_and_one_of_the_checkpoint_is(
    tiny_bert, saved, search, transfer, tmp_path
):
    fresh = Ticket.load(search(max_steps=1) / "ticket.safetensors")  # a masked LM has none
    whole = saved(
        hf.BertForSequenceClassification, hf.BertConfig, **ROOM | {"intermediate_size": 32}
    )
    out = search(model_name_or_path=whole, max_steps=1, output_dir=tmp_path / "whole")
    with_pooler = Ticket.load(out / "ticket.safetensors")
    assert "pooler.dense.weight" not in fresh.masks and "pooler.dense.weight" in with_pooler.masks
    moved = transfer(
        model_name_or_path=tiny_bert, ticket=out, max_steps=1, allow_other_weights=True
    )
    ticket = Ticket.load(moved / "seeds/42/ticket.safetensors")
    assert "pooler.dense.weight" not in ticket.masks  # it is fresh there

"""The prunable set by structure, for every family of encoders that the docs name."""

import pytest
import torch
import transformers as hf
from torch import nn

from lth_scale.config.errors import BadInput
from lth_scale.pruning import prunable_set
from lth_scale.pruning.prunable_set import prunable
from lth_scale.pruning.ticket import Ticket

LAYERS, HIDDEN, WIDE = 2, 16, 32
COMMON = {
    "vocab_size": 120,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": WIDE,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
BLOCK = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * WIDE
CONFIGS = {
    "bert": hf.BertConfig(**COMMON),
    "roberta": hf.RobertaConfig(**COMMON),
    "distilbert": hf.DistilBertConfig(
        vocab_size=120,
        dim=HIDDEN,
        n_layers=LAYERS,
        n_heads=2,
        hidden_dim=WIDE,
        max_position_embeddings=40,
    ),
    "mpnet": hf.MPNetConfig(**COMMON),
    "electra": hf.ElectraConfig(**COMMON, embedding_size=8),
    "deberta": hf.DebertaConfig(**COMMON, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta-v2": hf.DebertaV2Config(
        **COMMON, relative_attention=True, pos_att_type=["c2p", "p2c"]
    ),
    "modernbert": hf.ModernBertConfig(
        **COMMON,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        global_attn_every_n_layers=1,
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
def test_the_prunable_set_is_every_linear_of_the_layers_and_nothing_else(family):
    model = hf.AutoModelForMaskedLM.from_config(CONFIGS[family])
    parameters = prunable(model)
    matrices, weights = EXPECTED[family]
    assert (len(parameters), sum(w.numel() for w in parameters.values())) == (
        matrices * LAYERS,
        weights,
    )
    tied = {
        id(parameter)
        for parameter in (
            *model.get_input_embeddings().parameters(),
            model.get_output_embeddings().weight,
        )
    }
    assert all(
        w.ndim == 2 and id(w) not in tied and "embed" not in name for name, w in parameters.items()
    )
    order = [name for name, _ in model.base_model.named_parameters()]
    assert list(parameters) == sorted(parameters, key=order.index)


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
    assert (len(prunable(base)), sum(w.numel() for w in prunable(base).values())) == (
        73,
        85_524_480,
    )
    assert (len(prunable(bare)), sum(w.numel() for w in prunable(bare).values())) == (
        72,
        84_934_656,
    )


def test_a_network_without_layers_has_nothing_to_prune():
    assert prunable(nn.Sequential(nn.Linear(3, 3))) == {}


GPT2 = hf.GPT2Config(vocab_size=120, n_embd=HIDDEN, n_layer=LAYERS, n_head=2, n_positions=40)
SQUEEZE = hf.SqueezeBertConfig(
    **COMMON,
    embedding_size=HIDDEN,
    q_groups=2,
    k_groups=4,
    v_groups=2,
    post_attention_groups=1,
    intermediate_groups=2,
    output_groups=4,
)
ALBERT = hf.AlbertConfig(**COMMON, embedding_size=8)
# config, class, matrices, weights in all: counted by hand
OTHERS = {
    # c_attn, c_proj, c_fc, c_proj, as (inputs, outputs)
    "gpt2": (GPT2, hf.GPT2ForSequenceClassification, 4 * LAYERS, LAYERS * 12 * HIDDEN**2),
    # six convolutions of width 1 a layer, in groups; and a pooler
    "squeezebert": (
        SQUEEZE,
        hf.SqueezeBertForSequenceClassification,
        6 * LAYERS + 1,
        LAYERS * (HIDDEN**2 * 9 // 4 + HIDDEN * WIDE * 3 // 4) + HIDDEN**2,
    ),
    # one layer, shared; its pooler is a Linear by itself
    "albert": (ALBERT, hf.AlbertForSequenceClassification, 6 + 1, BLOCK + HIDDEN**2),
    # matrices by name of a list of attentions and one of feed-forward networks
    "xlm": (
        hf.XLMConfig(
            vocab_size=120, emb_dim=HIDDEN, n_layers=LAYERS, n_heads=2, max_position_embeddings=40
        ),
        hf.XLMForSequenceClassification,
        6 * LAYERS,
        LAYERS * 12 * HIDDEN**2,
    ),
    # its convolutions are depthwise: not pruned
    "nystromformer": (
        hf.NystromformerConfig(**COMMON, num_landmarks=4),
        hf.NystromformerForSequenceClassification,
        6 * LAYERS,
        LAYERS * BLOCK,
    ),
}


@pytest.mark.parametrize("family", OTHERS)
def test_matrices_of_all_kinds_of_modules_are_prunable(family):
    config, kind, matrices, weights = OTHERS[family]
    model = kind(config)
    prunable_set.check(model, (), "--model_name_or_path x")
    parameters = prunable(model)
    assert (len(parameters), sum(weight.numel() for weight in parameters.values())) == (
        matrices,
        weights,
    )


def test_depthwise_filters_are_described_in_one_line():
    line = prunable_set.describe_dense(OTHERS["nystromformer"][1](OTHERS["nystromformer"][0]))
    kernel = OTHERS["nystromformer"][0].conv_kernel_size
    assert (
        "encoder.layer.0.attention.self.conv.weight and 1 more" in line
        and f"({LAYERS * 2 * kernel} weights)" in line
    )
    convbert = hf.ConvBertModel(
        hf.ConvBertConfig(**COMMON, embedding_size=HIDDEN, head_ratio=1, conv_kernel_size=3)
    )
    assert "depthwise.weight" in prunable_set.describe_dense(convbert)
    names = [name.split(".", 3)[3] for name in prunable(convbert) if ".0." in name]
    assert "attention.self.key_conv_attn_layer.pointwise.weight" in names and len(names) == 9
    assert prunable_set.describe_dense(hf.BertModel(CONFIGS["bert"])) == ""
    assert prunable_set.describe_dense(convbert, ["depthwise"]) == ""


class Experts(nn.Module):
    """What a layer of experts in one parameter is like."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(4, HIDDEN, WIDE))
        self.up_bias = nn.Parameter(torch.zeros(4, WIDE))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 4, 4))


class Quantized(nn.Module):
    """Not nn.Linear, as IBert's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDE, HIDDEN))


class Normed2d(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm((4, HIDDEN))
        self.places = nn.Embedding(4, HIDDEN)


def bert_with(module: nn.Module, where: str = "extra") -> nn.Module:
    """A BERT, each of whose layers holds a module more."""
    model = hf.BertForSequenceClassification(CONFIGS["bert"])
    for layer in model.bert.encoder.layer:
        layer.add_module(where, module)
    return model


@pytest.mark.parametrize(
    ("module", "name", "size"),
    [
        (Experts(), "extra.up", "4×16×32, 2,048 numbers"),
        (nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1), "extra.weight", "16×16×3, 768 numbers"),
        (nn.Conv2d(2, 4, (1, 5)), "extra.weight", "4×2×1×5, 40 numbers"),
        (nn.Conv1d(HIDDEN, HIDDEN, 3, groups=4), "extra.weight", "16×4×3"),
        (nn.ConvTranspose1d(8, 8, 1), "extra.weight", "8×8×1"),
        (Grouped(), "extra.weight", "Grouped, 2×4×4"),
        (Quantized(), "extra.weight", "Quantized, 32×16"),
        (nn.MultiheadAttention(8, 2), "extra.in_proj_weight", "MultiheadAttention, 24×8"),
        (nn.LSTM(4, 4), "extra.weight_ih_l0", "LSTM, 16×4"),
    ],
)
def test_a_weight_that_is_no_matrix_is_refused_by_name_unless_it_is_ignored(module, name, size):
    model, before = (
        bert_with(module),
        len(prunable(hf.BertForSequenceClassification(CONFIGS["bert"]))),
    )
    with pytest.raises(BadInput) as refusal:
        prunable_set.check(model, (), "--model_name_or_path x")
    message = str(refusal.value)
    assert f"encoder.layer.0.{name} (" in message and size in message and "\n" not in message
    regex = message.split("--ignore '")[1].removesuffix("'")
    prunable_set.check(
        model, (regex,), "--model_name_or_path x"
    )  # the remedy helps at once, and leaves nothing else out
    inside = [n for n in prunable(model, (regex,)) if "extra" in n]
    assert len(prunable(model, (regex,))) == before + len(inside)


def test_matrices_that_are_not_all_linear_are_described():
    assert prunable_set.describe_kinds(hf.GPT2Model(GPT2)) == "matrices of the encoder: 8 of Conv1D"
    assert (
        prunable_set.describe_kinds(hf.SqueezeBertModel(SQUEEZE))
        == "matrices of the encoder: 12 of Conv1d, 1 of Linear"
    )
    assert prunable_set.describe_kinds(hf.BertModel(CONFIGS["bert"])) == ""


@pytest.mark.parametrize(
    "module", [Normed2d(), nn.Conv1d(8, 8, 3, groups=8), nn.Conv1d(8, 8, 1, groups=8)]
)
def test_norms_embeddings_and_depthwise_filters_are_not_matrices(module):
    model = bert_with(module)
    prunable_set.check(model, (), "--model_name_or_path x")
    assert (
        prunable(model).keys() == prunable(hf.BertForSequenceClassification(CONFIGS["bert"])).keys()
    )


@pytest.mark.parametrize(
    ("config", "kind", "name"),
    [
        (
            hf.XLNetConfig(vocab_size=120, d_model=16, n_layer=2, n_head=2, d_inner=32),
            "XLNetModel",
            "rel_attn.q",
        ),
        (
            hf.FunnelConfig(
                vocab_size=120, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=32
            ),
            "FunnelModel",
            "r_kernel",
        ),
        (hf.IBertConfig(**COMMON), "IBertModel", "intermediate.dense"),
        (
            hf.DebertaV2Config(**COMMON, conv_kernel_size=3, conv_act="gelu"),
            "DebertaV2Model",
            "encoder.conv.conv",
        ),
        (
            hf.ConvBertConfig(**COMMON, embedding_size=HIDDEN, num_groups=2),
            "ConvBertModel",
            "intermediate.dense",
        ),
        (hf.CanineConfig(**COMMON, num_hash_buckets=30), "CanineModel", "projection.conv.weight"),
        (
            hf.MixtralConfig(
                vocab_size=120,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                num_local_experts=2,
            ),
            "MixtralModel",
            "experts.gate_up_proj",
        ),
    ],
)
def test_families_that_hold_other_weights_are_refused_until_these_are_ignored(config, kind, name):
    with torch.device("meta"):
        model = getattr(hf, kind)(config)
    with pytest.raises(BadInput, match=name.replace(".", r"\.")) as refusal:
        prunable_set.check(model, (), "--model_name_or_path x")
    regex = str(refusal.value).split("--ignore '")[1].removesuffix("'")
    if kind == "IBertModel":  # nothing else is left in its layers
        with pytest.raises(BadInput, match="no matrix to prune in its layers"):
            prunable_set.check(model, (regex,), "--model_name_or_path x")
    else:
        prunable_set.check(model, (regex,), "--model_name_or_path x")
        assert prunable(model, (regex,))


def test_a_layer_named_after_an_embedding_is_prunable_and_parts_of_an_embedding_are_not():
    model = bert_with(nn.Linear(HIDDEN, WIDE), "embedding_mixer")
    assert (
        sum("embedding_mixer" in name for name in prunable(model)) == 1
    )  # one module, shared by the layers
    model.bert.embeddings.add_module("parts", nn.ModuleList([nn.Linear(4, 4), Experts()]))
    prunable_set.check(model, (), "--model_name_or_path x")
    assert not any(name.startswith("embeddings.") for name in prunable(model))


def test_a_fresh_pooler_and_ignored_weights_are_left_out():
    model = hf.BertForSequenceClassification(CONFIGS["bert"])
    whole = prunable(model)
    assert whole.keys() - prunable(
        model, fresh={"bert.pooler.dense.weight", "classifier.weight"}
    ).keys() == {"pooler.dense.weight"}
    assert whole.keys() - prunable(model, ["query", r"1\.output\.dense"]).keys() == {
        *(f"encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)),
        "encoder.layer.1.output.dense.weight",
    }
    with pytest.raises(BadInput, match="--ignore querry: matches no weight"):
        prunable_set.check(model, ["query", "querry"], "--model_name_or_path x")
    with pytest.raises(BadInput, match="no matrix to prune in its layers with --ignore encoder"):
        prunable_set.check(model, ["encoder"], "--model_name_or_path x")


def test_weights_that_a_search_ignored_stay_dense_and_other_missing_masks_are_errors():
    model = hf.SqueezeBertForSequenceClassification(SQUEEZE)
    masks = {
        name: torch.zeros(weight.shape, dtype=torch.bool)
        for name, weight in prunable(model).items()
    }
    some = {name: mask for name, mask in masks.items() if "query" not in name}
    query = "encoder.layers.0.attention.query.weight"
    pruned = Ticket(some, arguments={"ignore": [r"attention\.query"]}).apply(model)
    weights = prunable(pruned)
    assert weights[query].all() and not any(weights[name].any() for name in some)
    for arguments in ({}, {"ignore": []}, {"ignore": ["key"]}):
        with pytest.raises(ValueError, match=r"no mask for encoder\.layers\.0\.attention\.query"):
            Ticket(some, arguments=arguments).apply(model)
    # version 0.1.0 knew nn.Linear alone
    old = Ticket({"pooler.dense.weight": masks["pooler.dense.weight"]}, arguments={"task": "sst2"})
    assert old.masks_for(model)[query].all()
    with pytest.raises(ValueError, match=r"no mask for encoder\.layer\.0\.attention\.self"):
        old.apply(hf.BertModel(CONFIGS["bert"]))


def test_starved_matrices_of_a_conv1d_are_counted_by_its_outputs():
    model = hf.GPT2ForSequenceClassification(GPT2)
    masks = {
        name: torch.zeros(weight.shape, dtype=torch.bool)
        for name, weight in prunable(model).items()
    }
    for mask in masks.values():
        mask.view(-1)[: 2 * HIDDEN] = True
    narrow = {f"h.{i}.attn.c_attn.weight" for i in (0, 1)} | {
        f"h.{i}.mlp.c_fc.weight" for i in (0, 1)
    }
    assert Ticket(masks).starved(prunable_set.transposed(model)) == dict.fromkeys(
        sorted(narrow), 2 * HIDDEN
    )

"""Tiny networks of every family that fits the task heads, and their numbers of prunable weights.

The numbers are counted by hand from the architectures, as formulas in HIDDEN and WIDE, and never
computed by the code under test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import CONFIG_MAPPING

HIDDEN, WIDE, LAYERS = 16, 24, 2
SQUARE, UP = HIDDEN * HIDDEN, HIDDEN * WIDE
PLAIN = 4 * SQUARE + 2 * UP  # query, key, value, output; up, down
GATED = PLAIN + UP
SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": WIDE,
}
ROOM = {**SIZES, "max_position_embeddings": 48}
BART = {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": WIDE,
    "decoder_ffn_dim": WIDE,
    "max_position_embeddings": 48,
}
T5 = {
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": WIDE,
    "num_layers": LAYERS,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
GPT = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 2, "n_positions": 48}
EACH = ("sst2", "mlm", "squad")


@dataclass(frozen=True)
class Family:
    """A family: the fields of its config, and its prunable set.

    matrices, weights: without the pooler. pooler: its weights, by the tasks whose network has it
    from the checkpoint. refused: task → what the error must match. tokenizer: the fixture with the
    family's own, if that matters. saved: the Auto class of the checkpoint; by default the MLM class
    if there is one. lacks: tasks for which transformers has no class.
    """

    kind: str
    config: Mapping[str, Any]
    matrices: int = 0
    weights: int = 0
    pooler: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    tokenizer: str = "tokenizer"
    saved: str = ""
    flags: Mapping[str, str] = field(default_factory=dict)


def encoder(
    kind: str, config: Mapping[str, Any] = ROOM, matrices: int = 6, layer: int = PLAIN, **more: Any
) -> Family:
    """A family of LAYERS layers alike, of so many matrices and weights each."""
    return Family(kind, config, LAYERS * matrices, LAYERS * layer, **more)


def gated(kind: str, config: Mapping[str, Any] = ROOM, **more: Any) -> Family:
    """One whose feed-forward layers have a gate, in a matrix of its own."""
    return encoder(kind, config, 7, GATED, **more)


def refused(
    kind: str, config: Mapping[str, Any], why: str, tasks: tuple[str, ...] = EACH, **more: Any
) -> Family:
    """A family that no task takes, or not those of `tasks`."""
    return Family(kind, config, refused=dict.fromkeys(tasks, why), **more)


TEXT = ("mlm",)  # decoders and some encoders of documents have no class for masked tokens
NO_SQUAD = ("squad",)
DISENTANGLED = {**ROOM, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
CONVOLVED = {**DISENTANGLED, "conv_kernel_size": 3}
SQUEEZE = {
    f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")
}
GROUPED = {
    **ROOM,
    "embedding_size": HIDDEN,
    "num_groups": 2,
    "head_ratio": 1,
    "conv_kernel_size": 3,
}
CANINE = {**ROOM, "local_transformer_stride": 8, "num_hash_buckets": 64, "downsampling_rate": 2}
XLNET = {"d_model": HIDDEN, "n_layer": LAYERS, "n_head": 2, "d_inner": WIDE}
FUNNEL = {
    "block_sizes": [1, 1],
    "num_decoder_layers": 1,
    "d_model": HIDDEN,
    "n_head": 2,
    "d_head": 8,
    "d_inner": WIDE,
}
MIXTRAL = {**ROOM, "num_local_experts": 2, "num_key_value_heads": 2}
REFORMER = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 2,
    "attention_head_size": 8,
    "feed_forward_size": WIDE,
    "axial_pos_embds": False,
    "max_position_embeddings": 48,
    "local_attn_chunk_length": 8,
    "lsh_attn_chunk_length": 8,
    "is_decoder": False,
    "num_buckets": 4,
}
PERCEIVER = {
    "num_latents": 8,
    "d_latents": HIDDEN,
    "d_model": HIDDEN,
    "num_blocks": 1,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 2,
    "max_position_embeddings": 40,
}
UNSEEDED = ("reformer", "reformer-local")  # draws seeds of its own
ALWAYS = dict.fromkeys(
    EACH, SQUARE
)  # its MLM and QA networks have a pooler too, so that the checkpoint brings it
NOT_SQUAD = {"sst2": SQUARE, "mlm": SQUARE}
ZOO = {
    "bert": encoder("bert"),
    # with a pooler of the checkpoint, as BERT's own have
    "bert-pretraining": encoder("bert", pooler={"sst2": SQUARE}, saved="AutoModelForPreTraining"),
    "bert-base": encoder(
        "bert", pooler={"sst2": SQUARE}, saved="AutoModel", refused={"mlm": "--fresh_head"}
    ),
    "roberta": encoder("roberta"),
    "roberta-prelayernorm": encoder("roberta-prelayernorm"),
    "camembert": encoder("camembert"),
    "xlm-roberta": encoder("xlm-roberta"),
    "xlm-roberta-xl": encoder("xlm-roberta-xl"),
    "data2vec-text": encoder("data2vec-text"),
    # an adapter of one language beside each layer, of half its width
    "xmod": encoder(
        "xmod", {**ROOM, "languages": ["en_XX"], "default_language": "en_XX"}, 8, PLAIN + SQUARE
    ),
    "distilbert": encoder(
        "distilbert",
        {
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": 2,
            "hidden_dim": WIDE,
            "max_position_embeddings": 48,
        },
    ),
    # both layers are the same one, or one each
    "albert": Family("albert", {**ROOM, "embedding_size": 8}, 6, PLAIN),
    "albert-groups": encoder("albert", {**ROOM, "embedding_size": 8, "num_hidden_groups": 2}),
    "albert-base": Family(
        "albert",
        {**ROOM, "embedding_size": 8},
        6,
        PLAIN,
        {"sst2": SQUARE},
        {"mlm": "--fresh_head"},
        saved="AutoModel",
    ),
    "electra": encoder("electra", {**ROOM, "embedding_size": 8}),
    "ernie": encoder("ernie", {**ROOM, "use_task_id": True, "task_type_vocab_size": 3}),
    "megatron-bert": encoder("megatron-bert"),
    "mpnet": encoder("mpnet"),
    "rembert": encoder("rembert", {**ROOM, "input_embedding_size": 8, "output_embedding_size": 8}),
    "roformer": encoder("roformer", {**ROOM, "embedding_size": HIDDEN}),
    "roc_bert": encoder(
        "roc_bert",
        {
            **ROOM,
            "pronunciation_vocab_size": 50,
            "shape_vocab_size": 50,
            "pronunciation_embed_dim": 4,
            "shape_embed_dim": 4,
        },
    ),
    # a layer of width 8 between bottlenecks, with a second feed-forward network: query and key
    # 8 × 8, value 8 × 16, output 8 × 8; in, shared and out 8 × 16; up and down 24 × 8, twice
    "mobilebert": encoder(
        "mobilebert",
        {
            **ROOM,
            "embedding_size": HIDDEN,
            "intra_bottleneck_size": 8,
            "num_feedforward_networks": 2,
        },
        11,
        3 * 8 * 8 + 8 * HIDDEN + 3 * 8 * HIDDEN + 4 * 8 * WIDE,
    ),
    # convolutions of width 1, whole or in two groups (half as many weights), beside a linear pooler
    "squeezebert": encoder(
        "squeezebert", {**ROOM, "embedding_size": HIDDEN, **SQUEEZE}, pooler=ALWAYS
    ),
    "squeezebert-groups": encoder(
        "squeezebert",
        {**ROOM, "embedding_size": HIDDEN, **dict.fromkeys(SQUEEZE, 2)},
        6,
        PLAIN // 2,
        pooler=ALWAYS,
    ),
    # query, key and value in one matrix; two projections of positions
    "deberta": encoder("deberta", DISENTANGLED, 6, PLAIN + 2 * SQUARE),
    "deberta-v2": encoder("deberta-v2", DISENTANGLED, 8, PLAIN + 2 * SQUARE),
    "deberta-v2-shared": encoder("deberta-v2", {**DISENTANGLED, "share_att_key": True}),
    # a convolution beside the first layer
    "deberta-v2-conv": refused("deberta-v2", CONVOLVED, r"encoder\.conv\.conv.*--ignore"),
    "deberta-v2-ignored": encoder(
        "deberta-v2", CONVOLVED, 8, PLAIN + 2 * SQUARE, flags={"ignore": r"^encoder\.conv\."}
    ),
    # half the heads are convolutions: query, key, value, the pointwise one (width 1) and the
    # convolution's output are 8 × 16, the kernel's 2 · 3 × 8; the depthwise one is left out
    "convbert": encoder(
        "convbert",
        {**ROOM, "embedding_size": HIDDEN, "head_ratio": 1, "num_groups": 1, "conv_kernel_size": 3},
        9,
        5 * 8 * HIDDEN + 6 * 8 + SQUARE + 2 * UP,
    ),
    "convbert-groups": refused("convbert", GROUPED, r"\.dense\.weight.*--ignore"),
    "convbert-ignored": encoder(
        "convbert",
        GROUPED,
        7,
        5 * 8 * HIDDEN + 6 * 8 + SQUARE,
        flags={"ignore": r"layer\.\d\.(intermediate|output)"},
    ),
    # with as many landmarks as segments, like all published ones; the depthwise convolution is left
    # out
    "nystromformer": encoder(
        "nystromformer",
        {**ROOM, "segment_means_seq_len": 8, "num_landmarks": 8, "conv_kernel_size": 5},
    ),
    # else it takes rows of one length alone, as blocks of masked language modelling are
    "nystromformer-fixed": encoder(
        "nystromformer",
        {
            **SIZES,
            "segment_means_seq_len": 64,
            "num_landmarks": 8,
            "max_position_embeddings": 64,
            "conv_kernel_size": 5,
        },
        refused=dict.fromkeys(("sst2", "squad"), "fails on its tokenizer|cannot read the rows"),
    ),
    "yoso": encoder("yoso"),
    "mra": encoder("mra"),
    "big_bird": encoder("big_bird", {**ROOM, "attention_type": "original_full"}, pooler=NOT_SQUAD),
    "big_bird-sparse": encoder(
        "big_bird", {**ROOM, "block_size": 2, "num_random_blocks": 1}, pooler=NOT_SQUAD
    ),
    # three more projections, of the tokens with global attention
    "longformer": encoder(
        "longformer",
        {**ROOM, "attention_window": 4},
        9,
        PLAIN + 3 * SQUARE,
        tokenizer="two_separators",
    ),
    "longformer-of-bert": refused(
        "longformer",
        {**ROOM, "attention_window": 4},
        "three separator tokens",
        ("squad",),
        lacks=("sst2", "mlm"),
    ),
    # three more queries, between words and entities
    "luke": encoder(
        "luke",
        {**ROOM, "entity_vocab_size": 10, "entity_emb_size": 8},
        9,
        PLAIN + 3 * SQUARE,
        pooler=NOT_SQUAD,
    ),
    # no attention: up and down alone
    "fnet": encoder("fnet", ROOM, 2, 2 * UP, pooler=ALWAYS),
    # one layer with query, key and value, and one with query and key in one
    "reformer": Family(
        "reformer",
        {**REFORMER, "attn_layers": ["local", "lsh"]},
        11,
        7 * SQUARE + 4 * UP,
        lacks=("sst2", "squad"),
    ),
    # in training it wants multiples of its chunks
    "reformer-local": encoder(
        "reformer",
        {**REFORMER, "attn_layers": ["local", "local"]},
        refused={"squad": "multiple of"},
    ),
    "xlm": encoder(
        "xlm",
        {"emb_dim": HIDDEN, "n_layers": LAYERS, "n_heads": 2, "max_position_embeddings": 48},
        6,
        12 * SQUARE,
    ),
    "flaubert": encoder(
        "flaubert",
        {"emb_dim": HIDDEN, "n_layers": LAYERS, "n_heads": 2, "max_position_embeddings": 48},
        6,
        12 * SQUARE,
    ),
    # query, key and value in one matrix; gate and up in one
    "modernbert": encoder("modernbert", {**ROOM, "global_attn_every_n_layers": 2}, 4, GATED),
    # heads of width 16, with a gate behind the attention
    "neomme": encoder(
        "neomme",
        {**ROOM, "num_key_value_heads": 2, "head_dim": 16, "embedding_rank": 8},
        7,
        10 * SQUARE + 2 * UP,
        lacks=("sst2", "squad"),
    ),
    "nomic_bert": gated("nomic_bert", lacks=NO_SQUAD),
    "gte": gated("gte", lacks=NO_SQUAD),
    "eurobert": gated("eurobert", {**ROOM, "num_key_value_heads": 2}, lacks=NO_SQUAD),
    # one key and one value for two heads
    "eurobert-grouped": encoder(
        "eurobert", {**ROOM, "num_key_value_heads": 1}, 7, GATED - SQUARE, lacks=NO_SQUAD
    ),
    "ultrabert": gated("ultrabert"),
    "jina_embeddings_v3": encoder("jina_embeddings_v3"),
    "esm": encoder(
        "esm",
        {**ROOM, "mask_token_id": 4, "position_embedding_type": "rotary"},
        lacks=NO_SQUAD,
        tokenizer="proteins",
    ),
    "esmc": gated("esmc", lacks=NO_SQUAD),
    "tapas": encoder("tapas", lacks=NO_SQUAD),
    "layoutlm": encoder("layoutlm", lacks=NO_SQUAD, pooler=NOT_SQUAD),
    "layoutlmv3": encoder(
        "layoutlmv3",
        {**ROOM, "coordinate_size": 2, "shape_size": 4, "visual_embed": False},
        lacks=TEXT,
    ),
    # beside each layer one of a quarter of its width, for the layout: hidden 24, wide 24
    "lilt": encoder(
        "lilt",
        {**ROOM, "hidden_size": 24, "channel_shrink_ratio": 4},
        12,
        (4 + 2) * 24 * 24 + (4 + 2) * 6 * 6,
        lacks=TEXT,
    ),
    "markuplm": encoder("markuplm", {**ROOM, "max_depth": 2}, pooler={"sst2": SQUARE}, lacks=TEXT),
    "splinter": encoder("splinter", lacks=("sst2", "mlm")),
    # a layer of characters on either side of the stack, and convolutions between
    "canine": refused(
        "canine", CANINE, r"conv\.weight.*--ignore", ("sst2",), lacks=("mlm", "squad")
    ),
    "canine-ignored": Family(
        "canine",
        CANINE,
        4 * 6,
        4 * PLAIN,
        {"sst2": SQUARE},
        {"squad": "CanineTokenizer"},
        TEXT,
        tokenizer="characters",
        flags={"ignore": "conv"},
    ),
    # another decoder for each head, with trained positions, inside what would be the encoder
    "perceiver": refused(
        "perceiver", PERCEIVER, "(?i)perceiver.*; (give|use)", ("sst2", "mlm"), lacks=NO_SQUAD
    ),
    # decoders: what they read is to the left, but a ticket is a ticket
    "gpt2": encoder("gpt2", GPT, 4, 12 * SQUARE, lacks=TEXT),
    "openai-gpt": encoder("openai-gpt", GPT, 4, 12 * SQUARE, lacks=("mlm", "squad")),
    "gpt_neo": encoder(
        "gpt_neo",
        {
            "hidden_size": HIDDEN,
            "num_layers": LAYERS,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 48,
            "intermediate_size": WIDE,
        },
        lacks=TEXT,
    ),
    "opt": encoder(
        "opt",
        {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "ffn_dim": WIDE,
            "max_position_embeddings": 48,
            "word_embed_proj_dim": HIDDEN,
        },
        lacks=TEXT,
    ),
    "llama": gated("llama", lacks=TEXT),
    # what is no matrix of one linear map is named, and may be left dense
    "ibert": refused("ibert", ROOM, "QuantLinear.*--ignore"),
    "xlnet": refused("xlnet", XLNET, r"rel_attn\.\w+.*--ignore", ("sst2", "squad"), lacks=TEXT),
    "xlnet-ignored": encoder(
        "xlnet", XLNET, 2, 2 * UP, lacks=TEXT, flags={"ignore": r"rel_attn\."}
    ),
    "funnel": refused("funnel", FUNNEL, r"attention\.\w+.*--ignore"),
    # its decoder is a layer more, which classification does without
    "funnel-ignored": Family(
        "funnel",
        FUNNEL,
        3 * 6,
        3 * PLAIN,
        lacks=("sst2",),
        flags={"ignore": r"attention\.(r_|seg_)"},
    ),
    "funnel-without-decoder": Family(
        "funnel",
        FUNNEL,
        2 * 6,
        2 * PLAIN,
        lacks=("mlm", "squad"),
        flags={"ignore": r"attention\.(r_|seg_)"},
    ),
    "mixtral": refused("mixtral", MIXTRAL, r"mlp\.\w+.*--ignore", ("sst2", "squad"), lacks=TEXT),
    "mixtral-ignored": encoder(
        "mixtral", MIXTRAL, 4, 4 * SQUARE, lacks=TEXT, flags={"ignore": r"\.mlp\."}
    ),
    # encoders and decoders in one
    "bart": refused("bart", BART, "encoder-decoder"),
    "mbart": refused("mbart", BART, "encoder-decoder"),
    "mvp": refused("mvp", BART, "encoder-decoder"),
    "led": refused(
        "led", {**BART, "attention_window": 4}, "encoder-decoder", ("squad",), lacks=("sst2", "mlm")
    ),
    "t5": refused("t5", T5, "encoder-decoder", ("sst2", "squad"), lacks=TEXT),
    "umt5": refused("umt5", T5, "encoder-decoder", ("sst2", "squad"), lacks=TEXT),
    # needs pictures
    "lxmert": refused(
        "lxmert",
        {**SIZES, "l_layers": 1, "x_layers": 1, "r_layers": 1},
        "visual_feats",
        ("squad",),
        lacks=("sst2", "mlm"),
    ),
}
DECODERS = """
arcee axk1 axk2 biogpt bloom cohere_compass_text ctrl deepseek_v2 deepseek_v3 diffllama doge
exaone4 falcon gemma gemma2 gemma3_text glm glm4 gpt-sw3 gpt_bigcode gpt_neox gpt_oss gptj
helium hunyuan_v1_dense hunyuan_v1_moe jamba jetmoe minicpm3 minimax ministral ministral3
mistral mistral4 modernbert-decoder mpt nemotron olmo olmo2 olmo3 persimmon phi phi3 phimoe
qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next seed_oss smollm3 stablelm starcoder2
zamba zamba2
"""
LEFT_OUT = {
    **dict.fromkeys(
        DECODERS.split(),
        "a decoder: gpt2, openai-gpt, gpt_neo, opt, llama and mixtral stand for them",
    ),
    **dict.fromkeys(
        ("bigbird_pegasus", "mt5", "plbart", "t5gemma", "t5gemma2"),
        "an encoder-decoder as bart and t5 are",
    ),
    **dict.fromkeys(
        ("gemma3", "qwen3_5", "modernvbert", "ultravbert", "layoutlmv2"), "needs pictures"
    ),
}

# One of each architecture, by the class and fields of its config, for tests that do not need all
ARCHITECTURES = {
    name: (CONFIG_MAPPING[name], {**ZOO[name].config})
    for name in (
        *("bert", "roberta", "distilbert", "mpnet", "electra", "deberta", "deberta-v2"),
        *("squeezebert", "convbert", "modernbert"),
    )
}

"""tasks/tokenizer.py, tasks/inputs.py: digests of tokenizers, and what fits model and tokenizer."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from conftest import WORDS, sentence, write_jsonl
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.tasks import glue, inputs, mlm, registry, squad
from lth_scale.tasks.inputs import Inputs, agree_on_inputs
from lth_scale.tasks.loading import explain_load_error
from lth_scale.tasks.mlm import pack
from lth_scale.tasks.task import Task
from lth_scale.tasks.tokenizer import tokenizer_digest

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
WRAPPED = {**SPECIAL, "cls_token": "[CLS]", "sep_token": "[SEP]"}


def state_of(tokenizer: PreTrainedTokenizerBase) -> dict:
    return json.loads(tokenizer.backend_tokenizer.to_str())


def rebuilt(state: dict, **options) -> PreTrainedTokenizerFast:
    """A tokenizer of this tokenizer.json."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), **{**WRAPPED, **options}
    )


def of_words(
    template: list[str] | None = None, ids: dict[str, int] | None = None, **options
) -> PreTrainedTokenizerFast:
    """A whole-word tokenizer with these special tokens around a text ("$A"). ids: extra words."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({*WORDS})]
    vocabulary = {word: i for i, word in enumerate(names)} | (ids or {})
    state = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": None,
        "post_processor": template
        and {
            "type": "TemplateProcessing",
            "single": [piece(name, 0) for name in template],
            "pair": [piece(name, 0) for name in template] + [piece("$B", 1), piece("[SEP]", 1)],
            "special_tokens": {
                name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]}
                for name in {*template, "[SEP]"} - {"$A"}
            },
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    return rebuilt(state, **options)


def piece(name: str, kind: int) -> dict:
    is_text = name[0] == "$"
    return {"Sequence" if is_text else "SpecialToken": {"id": name.lstrip("$"), "type_id": kind}}


def swap(mapping: dict, one: str, other: str) -> None:
    mapping[one], mapping[other] = mapping[other], mapping[one]


CHANGES: dict[str, Callable[[dict], object]] = {
    "case is kept": lambda s: s["normalizer"].update(lowercase=False),
    "accents are kept": lambda s: s["normalizer"].update(strip_accents=False),
    "no normalizer": lambda s: s.update(normalizer=None),
    "another pre-tokenizer": lambda s: s.update(pre_tokenizer={"type": "WhitespaceSplit"}),
    "no post-processor": lambda s: s.update(post_processor=None),
    "two ids swapped": lambda s: swap(s["model"]["vocab"], "cat", "dog"),
    "a new word": lambda s: s["model"]["vocab"].update(zyx=len(s["model"]["vocab"])),
    "another prefix": lambda s: s["model"].update(continuing_subword_prefix="@@"),
    "shorter words": lambda s: s["model"].update(max_input_chars_per_word=3),
    "an added token": lambda s: s["added_tokens"].append(
        {
            **s["added_tokens"][0],
            "content": "cat sat",
            "id": len(s["model"]["vocab"]),
            "special": False,
        }
    ),
    "a flag of an added token": lambda s: s["added_tokens"][-1].update(lstrip=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_tokenizer_json_changes_the_digest(change, tokenizer):
    state = state_of(tokenizer)
    before = tokenizer_digest(rebuilt(state))
    CHANGES[change](state)
    assert tokenizer_digest(rebuilt(state)) != before


def test_the_order_of_merges_changes_the_digest():
    model = {
        "type": "BPE",
        "vocab": {c: i for i, c in enumerate(["a", "b", "c", "ab", "bc"])},
        "merges": [["a", "b"], ["b", "c"]],
    }
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    state = {"version": "1.0", "added_tokens": [], **dict.fromkeys(parts), "model": model}
    other = copy.deepcopy(state)
    other["model"]["merges"].reverse()
    one, two = (
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(s)))
        for s in (state, other)
    )
    assert one("abc")["input_ids"] != two("abc")["input_ids"]
    assert tokenizer_digest(one) != tokenizer_digest(two)


@pytest.mark.parametrize(
    "attribute",
    [
        {"truncation_side": "left"},
        {"split_special_tokens": True},
        {"model_input_names": ["input_ids"]},
        {"mask_token": "[UNK]"},
        {"cls_token": "[SEP]"},
    ],
    ids=str,
)
def test_attributes_that_change_ids_change_the_digest(attribute, tokenizer):
    state = state_of(tokenizer)
    assert tokenizer_digest(rebuilt(state)) != tokenizer_digest(rebuilt(state, **attribute))


@pytest.mark.parametrize(
    "use",
    [
        lambda t: None,
        lambda t: t("the cat sat", truncation=True, max_length=4),
        lambda t: t(["the", "the cat"], padding=True, truncation=True, max_length=3),
        lambda t: setattr(t, "padding_side", "left"),
        lambda t: setattr(t, "model_max_length", 17),
        lambda t: setattr(t, "name_or_path", "elsewhere"),
    ],
    ids=["unused", "truncated", "padded", "padding_side", "model_max_length", "name"],
)
def test_use_and_saving_do_not_change_the_digest(use, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "one")
    first = AutoTokenizer.from_pretrained(tmp_path / "one")
    before = tokenizer_digest(first)
    use(first)
    first.save_pretrained(tmp_path / "two")
    assert (
        tokenizer_digest(first)
        == before
        == tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path / "two"))
    )


def japanese(directory: Path, extra: str = "", **options) -> PreTrainedTokenizerBase:
    """A tokenizer of characters that exists in Python only, saved to the directory."""
    directory.mkdir(exist_ok=True)
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.", *extra]
    (directory / "vocab.txt").write_text("".join(f"{letter}\n" for letter in letters))
    kinds = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "character"}
    hf.BertJapaneseTokenizer(str(directory / "vocab.txt"), **kinds, **options).save_pretrained(
        directory
    )
    return AutoTokenizer.from_pretrained(directory)


def esm(directory: Path, extra: str = "", **options) -> PreTrainedTokenizerBase:
    """A tokenizer of words that exists in Python only."""
    directory.mkdir(exist_ok=True)
    words = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *sorted({*WORDS}), *extra]
    (directory / "vocab.txt").write_text("\n".join(words))
    hf.EsmTokenizer(str(directory / "vocab.txt"), **options).save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def phobert(directory: Path, extra: str = "", **options) -> PreTrainedTokenizerBase:
    """A tokenizer of byte pairs that exists in Python only."""
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_text(
        "".join(f"{piece} 9\n" for piece in ["th@@", "e", "c@@", "a@@", "t", *extra])
    )
    (directory / "bpe.codes").write_text("t h 9\n")
    files = (str(directory / name) for name in ("vocab.txt", "bpe.codes"))
    hf.PhobertTokenizer(*files, **options).save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


SLOW = {"japanese": japanese, "esm": esm, "phobert": phobert}


@pytest.mark.parametrize("kind", SLOW)
def test_the_digest_of_a_python_tokenizer_covers_its_files(kind, tmp_path):
    first = SLOW[kind](tmp_path / "one")
    assert not first.is_fast
    before = tokenizer_digest(first)
    first(["a cat", "the"], padding=True, truncation=True, max_length=4)
    assert (
        tokenizer_digest(first)
        == before
        == tokenizer_digest(SLOW[kind](tmp_path / "two", model_max_length=9))
    )
    assert tokenizer_digest(SLOW[kind](tmp_path / "three", extra="é")) != before
    first.add_tokens(["zyx"])
    assert tokenizer_digest(first) != before


def test_the_digest_of_a_python_tokenizer_covers_its_options(tmp_path):
    folded, kept = (japanese(tmp_path / str(fold), do_lower_case=fold) for fold in (True, False))
    assert folded("A")["input_ids"] != kept("A")["input_ids"] and tokenizer_digest(
        folded
    ) != tokenizer_digest(kept)


@pytest.fixture
def checkpoint(tmp_path):
    """Save a model of the config, with a masked-LM head, beside a tokenizer."""

    def make(
        config: hf.PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        auto=hf.AutoModelForMaskedLM,
    ) -> Path:
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def bert(tokenizer: PreTrainedTokenizerBase, **more) -> hf.BertConfig:
    return hf.BertConfig(
        **{**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 40, **more}
    )


@pytest.mark.parametrize(("kind", "task"), [("japanese", "sst2"), ("esm", "mlm")])
def test_a_search_with_a_python_tokenizer_runs_and_saves_it(
    kind, task, checkpoint, search, text_data, sst2_data, tmp_path
):
    tokenizer = SLOW[kind](tmp_path / "tokenizer")
    directory = checkpoint(bert(tokenizer), tokenizer)
    data = text_data if task == "mlm" else sst2_data
    out = search(
        task=task, model_name_or_path=directory, dataset_path=data, max_steps=1, target_sparsity=0.1
    )
    saved = AutoTokenizer.from_pretrained(out / "rounds/01/model")
    assert (
        type(saved) is type(tokenizer)
        and saved("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]
    )


@pytest.mark.parametrize("kind", SLOW)
def test_squad_refuses_a_tokenizer_without_offsets(kind, checkpoint, small, tmp_path):
    tokenizer = SLOW[kind](tmp_path / "tokenizer")
    directory = checkpoint(bert(tokenizer), tokenizer)
    with pytest.raises(
        BadInput, match=rf"--task squad: {type(tokenizer).__name__}, .* tokenizer\.json"
    ):
        registry.load_task(
            parse(small(task="squad", model_name_or_path=directory, dataset_path=tmp_path))
        )


AROUND = {
    "none": ["$A"],
    "one before": ["[CLS]", "$A"],
    "one after": ["$A", "[SEP]"],
    "both": ["[CLS]", "$A", "[SEP]"],
    "two after": ["$A", "[SEP]", "[CLS]"],
    "two before": ["[CLS]", "[CLS]", "$A", "[SEP]"],
}


@pytest.mark.parametrize("kind", AROUND)
def test_blocks_have_the_special_tokens_where_a_text_has_them(kind):
    tokenizer = of_words(AROUND[kind])
    texts = [sentence(i) for i in range(9)]
    at = AROUND[kind].index("$A")
    before, after = (
        tokenizer.convert_tokens_to_ids(part)
        for part in (AROUND[kind][:at], AROUND[kind][at + 1 :])
    )
    assert inputs.special_tokens_around(tokenizer) == (before, after)
    blocks = pack({"text": texts}, tokenizer, 12)["input_ids"]
    inside = [block[len(before) : 12 - len(after)] for block in blocks]
    assert all(len(block) == 12 for block in blocks) and len(blocks) > 3
    assert all(
        block[: len(before)] == before and block[12 - len(after) :] == after for block in blocks
    )
    stream = tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
    joined = [id for part in inside for id in part]
    assert joined == stream[: len(joined)]


@pytest.mark.parametrize(
    ("template", "lost"), [(["$A"], True), (["$A", "[SEP]"], True), (["[CLS]", "$A"], False)]
)
def test_warns_about_missing_special_tokens_once(template, lost, checkpoint, small, caplog):
    tokenizer = of_words(template)
    registry.load_task(parse(small(model_name_or_path=checkpoint(bert(tokenizer), tokenizer))))
    assert (
        len([record for record in caplog.records if "does not add [CLS]" in record.message]) == lost
    )


@pytest.mark.parametrize(
    ("template", "kind", "warned"),
    [
        (None, hf.GPT2Config, True),
        (["[CLS]", "$A", "[SEP]"], hf.GPT2Config, False),
        (["$A", "[SEP]"], bert, False),
    ],
)
@pytest.mark.parametrize("texts", [1, 2])
def test_warns_about_texts_without_a_separator_once(
    template, kind, warned, texts, checkpoint, small, caplog
):
    tokenizer = of_words(template, cls_token=template and "[CLS]")
    config = (
        bert(tokenizer)
        if kind is bert
        else kind(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=40)
    )
    directory = checkpoint(config, tokenizer, hf.AutoModel)
    args = parse(small(model_name_or_path=directory, max_seq_length=16))
    model = hf.AutoModel.from_pretrained(directory)
    agree_on_inputs(args, model, tokenizer, texts)
    lines = [record for record in caplog.records if "no token between two texts" in record.message]
    assert len(lines) == (warned and texts == 2)


def set_field(directory: Path, name: str, value: object) -> Path:
    """Change a field of tokenizer_config.json."""
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    return directory


@pytest.mark.parametrize("most", [0, -1, 3, "512", True, [8]], ids=str)
def test_an_impossible_model_max_length_is_refused(most, tokenizer, checkpoint, small):
    directory = set_field(checkpoint(bert(tokenizer), tokenizer), "model_max_length", most)
    with pytest.raises(BadInput, match=r"tokenizer_config\.json has model_max_length .*remove it"):
        registry.load_task(parse(small(model_name_or_path=directory)))


def test_a_model_max_length_may_be_a_whole_float(tokenizer, checkpoint, small):
    directory = set_field(checkpoint(bert(tokenizer), tokenizer), "model_max_length", 9.0)
    task = registry.load_task(parse(small(model_name_or_path=directory)))
    assert max(map(len, task.train["input_ids"])) == 9


@pytest.mark.parametrize(("value", "left_to_others"), [(float("nan"), True), (1e6, False)])
def test_padding_is_not_neutral_if_no_output_is_usable_except_for_nan(
    value, left_to_others, tokenizer
):
    model = hf.BertForSequenceClassification(bert(tokenizer))
    torch.nn.init.constant_(model.classifier.bias, value)
    row = tokenizer("the cat", return_tensors="pt")
    assert inputs.is_neutral(model, tokenizer, row, 16, "right") == left_to_others


@pytest.mark.parametrize(
    ("ids", "rows", "named"),
    [
        ({"zyx": 999}, 100, "'zyx' is 999"),
        ({"zyx": 100}, 100, "'zyx' is 100"),
        ({"zyx": 99}, 100, None),
        ({"z" * 50: 999}, 100, r"'z+… \(52 characters\) is 999"),
        ({"zyx": 50}, 1000, None),
    ],
)
def test_an_id_without_an_embedding_is_refused(ids, rows, named, checkpoint, small):
    tokenizer = of_words(["[CLS]", "$A", "[SEP]"], ids)
    args = parse(small(model_name_or_path=checkpoint(bert(tokenizer, vocab_size=rows), tokenizer)))
    if named is None:
        assert registry.load_task(args)
    else:
        with pytest.raises(
            BadInput,
            match=f"more tokens than its embeddings .*{named}, and the last one is {rows - 1}",
        ):
            registry.load_task(args)


def test_an_added_token_without_an_embedding_is_refused(tokenizer, checkpoint, small):
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<new>"], special_tokens=True)
    directory = checkpoint(bert(tokenizer), more)
    with pytest.raises(BadInput, match=f"'<new>' is {len(tokenizer)}"):
        registry.load_task(parse(small(model_name_or_path=directory)))


READERS = {
    "bert": (hf.BertConfig, {**SIZES, "max_position_embeddings": 40}, "right", False),
    "roberta": (
        hf.RobertaConfig,
        {**SIZES, "max_position_embeddings": 42, "pad_token_id": 0},
        "right",
        False,
    ),
    "deberta": (
        hf.DebertaV2Config,
        {
            **SIZES,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        "right",
        False,
    ),
    "bloom": (
        hf.BloomConfig,
        {"hidden_size": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 3},
        "right",
        False,
    ),
    "xlnet": (
        hf.XLNetConfig,
        {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
        "left",
        False,
    ),
    "fnet": (
        hf.FNetConfig,
        {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24},
        "right",
        True,
    ),
    "convbert": (
        hf.ConvBertConfig,
        {**SIZES, "embedding_size": 16, "pad_token_id": 0},
        "right",
        True,
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_padding_is_on_the_side_where_scores_do_not_depend_on_the_batch(
    kind, tokenizer, small, tmp_path
):
    config, sizes, side, always = READERS[kind]
    torch.manual_seed(0)
    hf.AutoModel.from_config(config(vocab_size=len(tokenizer), **sizes)).save_pretrained(
        tmp_path / "model"
    )
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left" if side == "right" else "right"
    left.save_pretrained(tmp_path / "model")
    agreed: dict = {}
    task = loaded(small(model_name_or_path=tmp_path / "model"), agreed)
    assert task.tokenizer.padding_side == side and (agreed["padding"] == "max_length") == always
    rows = [task.validation[i] for i in range(8)]
    assert len({len(row["input_ids"]) for row in rows}) > 2
    task.model.eval()
    with torch.no_grad():
        together = task.loss(task.model, task.eval_collate(rows))[1]
        alone = [task.loss(task.model, task.eval_collate([row]))[1] for row in rows]
    assert torch.allclose(
        torch.cat(alone), together, atol=1e-5 * float(together.abs().max()) + 1e-7
    )


def loaded(flags: list[str], agreed: dict) -> Task:
    """Load the task, and copy what `agree_on_inputs` returns into `agreed`."""

    def agree(*values, **options):
        result = agree_on_inputs(*values, **options)
        agreed.update(vars(result))
        return result

    with pytest.MonkeyPatch.context() as patch:
        for module in (glue, squad, mlm):
            patch.setattr(module, "agree_on_inputs", agree)
        return registry.load_task(parse(flags))


def test_a_saved_network_pads_on_the_side_that_was_used(tokenizer, checkpoint, search):
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    out = search(
        model_name_or_path=checkpoint(bert(tokenizer), left), max_steps=1, target_sparsity=0.1
    )
    assert AutoTokenizer.from_pretrained(out / "rounds/01/model").padding_side == "right"


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_uses_the_tokenizers_side_and_keeps_special_tokens(
    side, tokenizer, checkpoint, small
):
    directory = set_field(checkpoint(bert(tokenizer), tokenizer), "truncation_side", side)
    task = registry.load_task(parse(small(model_name_or_path=directory, max_seq_length=8)))
    whole = tokenizer(sentence(7), add_special_tokens=False)["input_ids"]
    kept = whole[:6] if side == "right" else whole[-6:]
    assert len(whole) > 6
    assert task.train[7]["input_ids"] == [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id]


@pytest.mark.parametrize("names", [["input_ids"], ["input_ids", "token_type_ids"]], ids=str)
def test_padding_is_masked_even_if_the_tokenizer_returns_no_mask(
    names, tokenizer, checkpoint, small
):
    directory = set_field(checkpoint(bert(tokenizer), tokenizer), "model_input_names", names)
    task = registry.load_task(parse(small(model_name_or_path=directory)))
    batch = task.eval_collate([task.validation[i] for i in range(8)])
    assert torch.equal(
        batch["attention_mask"], (batch["input_ids"] != tokenizer.pad_token_id).long()
    )


@pytest.mark.parametrize(
    ("config", "pad", "warned"),
    [({}, 0, False), ({"pad_token_id": 7}, 7, True), ({"pad_token_id": None}, None, False)],
    ids=["the same", "another", "none"],
)
def test_warns_about_another_pad_id_than_the_tokenizers(
    config, pad, warned, tokenizer, checkpoint, small, caplog
):
    directory = checkpoint(bert(tokenizer, **config), tokenizer)
    task = registry.load_task(parse(small(model_name_or_path=directory)))
    assert task.model.config.pad_token_id == pad
    assert ("take 7 as the id of padding, and its tokenizer pads with 0" in caplog.text) == warned


LENGTHS = {
    "bert": (hf.BertConfig, {**SIZES, "max_position_embeddings": 40}, 40),
    "roberta": (hf.RobertaConfig, {**SIZES, "max_position_embeddings": 42, "pad_token_id": 1}, 40),
    "ibert": (hf.IBertConfig, {**SIZES, "max_position_embeddings": 42, "pad_token_id": 1}, 40),
    "mpnet": (hf.MPNetConfig, {**SIZES, "max_position_embeddings": 42, "pad_token_id": 1}, 40),
    "nystromformer": (hf.NystromformerConfig, {**SIZES, "max_position_embeddings": 38}, 38),
    "yoso": (hf.YosoConfig, {**SIZES, "max_position_embeddings": 38}, 38),
    "roformer": (
        hf.RoFormerConfig,
        {**SIZES, "embedding_size": 16, "max_position_embeddings": 40},
        40,
    ),
    "distilbert": (
        hf.DistilBertConfig,
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40},
        40,
    ),
    "xlm": (
        hf.XLMConfig,
        {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40},
        40,
    ),
    "gpt2": (hf.GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}, 40),
    "bloom": (hf.BloomConfig, {"hidden_size": 16, "n_layer": 2, "n_head": 2}, 100),
    "xlnet": (hf.XLNetConfig, {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}, 100),
}


def agreed(model: hf.PreTrainedModel, tokenizer: PreTrainedTokenizerBase, small, **flags) -> Inputs:
    given = {"max_seq_length": 100, **flags}
    return agree_on_inputs(parse(small(**given)), model, copy.deepcopy(tokenizer))


@pytest.mark.parametrize("kind", LENGTHS)
def test_the_length_is_the_models_number_of_positions(kind, tokenizer, small, caplog):
    config, sizes, expected = LENGTHS[kind]
    model = hf.AutoModelForSequenceClassification.from_config(
        config(vocab_size=len(tokenizer), **sizes)
    )
    before = torch.get_rng_state()
    assert agreed(model, tokenizer, small).length == expected
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert (f"100 is more than the model takes; using {expected}" in caplog.text) == (
        expected < 100
    )


@pytest.mark.parametrize("pad", [None, 7])
def test_a_head_that_reads_the_last_token_gets_the_pad_id(pad, tokenizer, small):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 2, "eos_token_id": 2}
    config = hf.GPT2Config(vocab_size=len(tokenizer), **sizes, pad_token_id=pad)
    model = hf.AutoModelForSequenceClassification.from_config(config)
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    assert agree_on_inputs(parse(small()), model, left).padding == "longest"
    assert model.config.pad_token_id == tokenizer.pad_token_id and left.padding_side == "right"


def test_an_unnamed_position_table_is_found_by_running_the_model(tokenizer, small):
    model = hf.AutoModelForSequenceClassification.from_config(bert(tokenizer))
    model.bert.embeddings.position_embeddings = torch.nn.Sequential(torch.nn.Embedding(33, 16))
    assert agreed(model, tokenizer, small).length == 33


def test_the_tokenizers_limit_applies_too(tokenizer, small):
    short = copy.deepcopy(tokenizer)
    short.model_max_length = 20
    model = hf.AutoModelForSequenceClassification.from_config(bert(tokenizer))
    assert agreed(model, short, small).length == 20


def test_a_model_that_fails_on_tokens_is_refused(tokenizer, small):
    model = hf.AutoModelForSequenceClassification.from_config(bert(tokenizer))
    model.bert.embeddings.token_type_embeddings = torch.nn.Embedding(2, 7)
    with pytest.raises(
        BadInput, match="BertForSequenceClassification fails on its tokenizer's output"
    ):
        agreed(model, tokenizer, small)


@pytest.mark.parametrize(
    ("problem", "package"),
    [
        (
            ImportError(
                "You need to install sacremoses to use XLMTokenizer. See https://x for "
                "installation."
            ),
            "sacremoses",
        ),
        (
            ModuleNotFoundError("The unidic_lite dictionary is not installed. See https://x"),
            "unidic-lite",
        ),
        (ImportError("You need to install sudachipy>=0.6.8 to specify `projection`"), "sudachipy"),
        (
            ImportError("\nMLukeTokenizer requires the SentencePiece library but it was not found"),
            "sentencepiece",
        ),
        (
            ValueError(
                "`tiktoken` is required to read a `tiktoken` file. Install it with `pip install "
                "tiktoken`."
            ),
            "sentencepiece",
        ),
    ],
)
def test_a_missing_package_is_reported(problem, package, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "spm.model").write_bytes(b"")
    explanation = explain_load_error(problem, tmp_path)
    assert (
        explanation.removeprefix("its tokenizer ")
        == f"needs the package {package}, which is not installed; pip install {package}"
    )


@pytest.mark.parametrize("name", ["sentencepiece-bert", "tiktoken", "trust_remote_code"])
def test_the_name_of_a_directory_is_not_read_as_a_package(name):
    assert (
        explain_load_error(
            OSError(f"/models/{name}/config.json is missing"), Path("/models") / name
        )
        is None
    )


def test_a_model_without_a_limit_is_run_on_short_inputs_only(tokenizer, small, monkeypatch):
    sizes = dict(hidden_size=16, n_layer=2, n_head=2, pad_token_id=0)
    config = hf.BloomConfig(vocab_size=len(tokenizer), **sizes)
    model = hf.AutoModelForSequenceClassification.from_config(config)
    long, lengths = copy.deepcopy(tokenizer), []
    long.model_max_length = int(1e30)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    monkeypatch.setattr(inputs, "LONGEST_RUN", 50)
    assert agreed(model, long, small, max_seq_length=100_000).length == 100_000
    assert max(lengths) <= 64


def test_warns_if_emoji_are_not_converted(checkpoint, small, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "emoji", None)
    (tmp_path / "vocab.txt").write_text(
        "".join(f"{piece} 9\n" for piece in ["th@@", "e", "c@@", "a@@", "t"])
    )
    (tmp_path / "bpe.codes").write_text("#version: 0.2\nt h 9\n")
    tokenizer = hf.BertweetTokenizer(
        str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"), normalization=True
    )
    registry.load_task(parse(small(model_name_or_path=checkpoint(bert(tokenizer), tokenizer))))
    assert "pip install emoji" in caplog.text


@pytest.mark.parametrize(
    ("file", "auto", "more", "kind"),
    [
        ("config.json", "AutoModel", {}, "BertForSequenceClassification"),
        (
            "tokenizer_config.json",
            "AutoTokenizer",
            {"tokenizer_class": "PreTrainedTokenizerFast"},
            "TokenizersBackend",
        ),
    ],
)
def test_warns_about_custom_code_that_is_not_run(
    file, auto, more, kind, tiny_bert, small, tmp_path, caplog
):
    shutil.copytree(tiny_bert, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(
        json.dumps(
            {**json.loads(path.read_text()), "auto_map": {auto: ["house.House", None]}, **more}
        )
    )
    registry.load_task(parse(small(model_name_or_path=tmp_path / "model")))
    assert f"(auto_map) is not run; it is loaded as transformers' {kind}" in caplog.text


def test_equal_tokenizers_share_the_cache_and_others_do_not(tiny_bert, small, tmp_path):
    for name in ("one", "two", "three"):
        shutil.copytree(tiny_bert, tmp_path / name)
    path = tmp_path / "three/tokenizer.json"
    state = json.loads(path.read_text())
    swap(state["model"]["vocab"], "cat", "dog")
    path.write_text(json.dumps(state))
    write_jsonl(
        tmp_path / "data/train.jsonl", [{"sentence": "the cat", "label": i} for i in (0, 1)]
    )
    shutil.copy(tmp_path / "data/train.jsonl", tmp_path / "data/validation.jsonl")
    flags = {"dataset_path": tmp_path / "data"}
    trains = [
        registry.load_task(parse(small(**flags, model_name_or_path=tmp_path / name))).train
        for name in ("one", "two", "three")
    ]
    assert trains[0].cache_files == trains[1].cache_files != trains[2].cache_files
    assert trains[0][0]["input_ids"] != trains[2][0]["input_ids"]

"""tasks/weights.py: the checkpoint's encoder is complete; its head is fresh, kept or refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from conftest import sentence, write_jsonl
from safetensors.torch import load_file, save_file
from zoo import ARCHITECTURES

from lth_scale import Ticket
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.science import summary
from lth_scale.tasks import registry
from lth_scale.tasks.loading import load_model, load_tokenizer
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.task import label_config
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.training.run import Run

HEADS = {"mlm": hf.AutoModelForMaskedLM, "squad": hf.AutoModelForQuestionAnswering}
CLASSIFIER = hf.AutoModelForSequenceClassification
EXTRA = {
    "albert": (hf.AlbertConfig, ARCHITECTURES["electra"][1]),
    "convbert": (hf.ConvBertConfig, {**ARCHITECTURES["electra"][1], "conv_kernel_size": 3}),
    "gpt2": (hf.GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}),
    "xlm-roberta": (hf.XLMRobertaConfig, ARCHITECTURES["roberta"][1]),
}


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    """Make and save a tiny model of a family, and return its directory."""

    def make(
        family: str, auto=hf.AutoModelForMaskedLM, seed: int = 0, name: str = "model", **config
    ) -> Path:
        kind, sizes = (ARCHITECTURES | EXTRA)[family]
        torch.manual_seed(seed)
        special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 2, "eos_token_id": 3}
        model = auto.from_config(kind(vocab_size=len(tokenizer), **special, **sizes, **config))
        with torch.no_grad():
            for weight in model.parameters():  # no bias or LayerNorm keeps its initial value
                weight.add_(0.1 * torch.randn_like(weight))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def edit(directory: Path, change, **config) -> Path:
    """Change the tensors of a checkpoint (a function of the dictionary), and its config."""
    path = directory / "model.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in change(load_file(path)).items()},
        path,
        {"format": "pt"},
    )
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | config))
    return directory


def renamed(old: str, new: str):
    return lambda weights: {name.replace(old, new): tensor for name, tensor in weights.items()}


def load(directory: Path, task: str = "sst2", *flags: str, seed: int = 7, **options):
    """The `LoadedModel` of a task."""
    given = ["--task", task, "--model_name_or_path", str(directory), "--seed", str(seed), *flags]
    args = parse(given)
    tokenizer = load_tokenizer(args)
    return load_model(args, HEADS.get(task, CLASSIFIER), tokenizer, **label_config(**options))


def encoder(model) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in model.base_model.state_dict().items()
        if "pooler" not in name
    }


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


def in_shards(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    halves = {"a-1.safetensors": [*weights][::2], "a-2.safetensors": [*weights][1::2]}
    for part, names in halves.items():
        save_file({name: weights[name] for name in names}, directory / part, {"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: part for part, names in halves.items() for name in names},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


SPELLINGS = {
    "DistributedDataParallel": lambda w: {f"module.{name}": tensor for name, tensor in w.items()},
    "torch.compile": lambda w: {f"_orig_mod.{name}": tensor for name, tensor in w.items()},
    "both": lambda w: {f"module._orig_mod.{name}": tensor for name, tensor in w.items()},
    "both, in the other order": lambda w: {
        f"_orig_mod.module.{name}": tensor for name, tensor in w.items()
    },
    "torch.compile of the encoder": lambda w: {
        name.replace("bert.", "bert._orig_mod."): tensor for name, tensor in w.items()
    },
    "Lightning twice": lambda w: {f"model.model.{name}": tensor for name, tensor in w.items()},
    "Lightning": lambda w: {f"model.{name}": tensor for name, tensor in w.items()},
    "an encoder alone": lambda w: {
        n.removeprefix("bert."): tensor for n, tensor in w.items() if n.startswith("bert.")
    },
    "TensorFlow": lambda w: {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in w.items()
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_weights_under_other_names_give_the_same_model(spelling, checkpoint):
    plain = load(checkpoint("bert"))
    loaded = load(edit(checkpoint("bert"), SPELLINGS[spelling]))
    assert same(encoder(loaded.model), encoder(plain.model)) and loaded.fresh == plain.fresh
    assert same(loaded.model.state_dict(), plain.model.state_dict())


CONSTANTS = {
    "a Boolean mask": ("h.0.attn.bias", torch.ones(1, 1, 40, 40, dtype=torch.bool)),
    "a mask of bytes": ("h.1.attn.bias", torch.ones(1, 1, 40, 40, dtype=torch.uint8)),
    "the score of masked positions": ("h.0.attn.masked_bias", torch.tensor(-1e4)),
    "frequencies": ("h.1.attn.rotary_emb.inv_freq", torch.ones(4)),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_constants_that_older_versions_stored_are_ignored(case, checkpoint):
    directory = checkpoint("gpt2", hf.AutoModel)
    plain = load(directory)
    loaded = load(edit(directory, lambda weights: weights | dict([CONSTANTS[case]])))
    assert same(loaded.model.state_dict(), plain.model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_converted_to_fp32(dtype, checkpoint):
    directory = edit(
        checkpoint("roberta"), lambda w: {name: tensor.to(dtype) for name, tensor in w.items()}
    )
    weights = load_file(directory / "model.safetensors")
    loaded = load(directory).model
    for name, tensor in loaded.base_model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(
            tensor, weights[f"roberta.{name}"].float()
        )


TIED = {
    "roberta": "lm_head.decoder.weight",
    "distilbert": "vocab_projector.weight",
    "electra": "generator_lm_head.weight",
    "albert": "predictions.decoder.weight",
    "deberta-v2": "cls.predictions.decoder.weight",
    "modernbert": "decoder.weight",
    "convbert": "generator_lm_head.weight",
    "gpt2": "lm_head.weight",
}


def only_the_heads_name(family: str):
    def change(weights):
        shared = next(
            name
            for name in weights
            if name.endswith(("d_embeddings.weight", "k_embeddings.weight", "wte.weight"))
        )
        return {
            TIED[family] if name == shared else name: tensor for name, tensor in weights.items()
        }

    return change


@pytest.mark.parametrize("family", TIED)
def test_a_tied_tensor_may_be_stored_under_the_name_of_the_head(family, checkpoint):
    tasks, auto = ["mrpc", "squad", "mlm"], hf.AutoModelForMaskedLM
    if family == "gpt2":
        tasks, auto = tasks[:2], hf.AutoModelForCausalLM
    plain = {task: load(checkpoint(family, auto), task) for task in tasks}
    directory = edit(checkpoint(family, auto), only_the_heads_name(family))
    for task in tasks:
        loaded = load(directory, task)
        assert same(loaded.model.state_dict(), plain[task].model.state_dict()), task
        assert loaded.fresh == plain[task].fresh


@pytest.mark.parametrize("task", ["rte", "mlm"])
def test_a_tied_tensor_is_missing_if_the_config_does_not_tie_it(task, checkpoint):
    directory = edit(
        checkpoint("roberta"), only_the_heads_name("roberta"), tie_word_embeddings=False
    )
    with pytest.raises(
        BadInput, match=r"lacks roberta\.embeddings\.word_embeddings\.weight.*use a complete one"
    ):
        load(directory, task)


def without(text: str):
    return lambda weights: {name: tensor for name, tensor in weights.items() if text not in name}


def with_value(part: str, value: float):
    def change(weights):
        name = next(name for name in weights if part in name)
        weights[name].view(-1)[:2] = value
        return weights

    return change


def added(**more: torch.Tensor):
    return lambda weights: (
        weights | {name.replace("__", "."): tensor for name, tensor in more.items()}
    )


REFUSED = {
    "no embeddings": (
        without("position_embeddings"),
        {},
        r"lacks bert\.embeddings\.position_embeddings\.weight",
    ),
    "LayerNorms of another library": (
        renamed("LayerNorm.", "ln."),
        {},
        r"lacks bert\.embeddings\.LayerNorm\.weight and 9 more weights "
        r"\(it has bert\.embeddings\.ln\.bias and",
    ),
    "no bias": (
        without("layer.1.output.dense.bias"),
        {},
        r"lacks bert\.encoder\.layer\.1\.output\.dense\.bias",
    ),
    "half a pooler": (
        added(bert__pooler__dense__weight=torch.eye(16)),
        {},
        r"lacks bert\.pooler\.dense\.bias",
    ),
    "another prefix": (
        renamed("bert.", "teacher.bert."),
        {},
        r"lacks bert\.\S+ and 36 more weights .it has",
    ),
    "more layers than the config": (
        lambda w: w,
        {"num_hidden_layers": 1},
        r"has bert\.encoder\.layer\.1\..*config",
    ),
    "fewer layers than the config": (
        lambda w: w,
        {"num_hidden_layers": 3},
        r"lacks bert\.encoder\.layer\.2\.",
    ),
    "adapters": (
        added(bert__encoder__layer__0__adapter__weight=torch.eye(2)),
        {},
        r"adapter\.weight in its layers",
    ),
    "a norm after the last layer": (
        added(bert__encoder__norm__weight=torch.ones(16)),
        {},
        r"has bert\.encoder\.norm",
    ),
    "a tensor of another architecture": (
        added(encoder__norm_after__bias=torch.ones(16)),
        {},
        r"has encoder\.norm_after",
    ),
    "labels in a list": (
        lambda w: w,
        {"id2label": ["a", "b"]},
        r"id2label \['a', 'b'\]; its keys must be numbers",
    ),
    "labels by name": (
        lambda w: w,
        {"id2label": {"a": 0}},
        r"id2label \{'a': 0\}; its keys must be numbers",
    ),
    "another shape": (
        lambda w: w,
        {"type_vocab_size": 3},
        r"token_type_embeddings\.weight of shape \(2, 16\)",
    ),
    "a weight under two names": (
        lambda w: w | {name.removeprefix("bert."): tensor + 1 for name, tensor in w.items()},
        {},
        r"has both bert\.\S+ and",
    ),
    "NaN": (
        with_value("value.bias", float("nan")),
        {},
        r"2 of 16 values of bert\.encoder\.layer\.0\.\S+value\.bias",
    ),
    "an infinity": (
        with_value("word_embeddings", float("-inf")),
        {},
        r"2 of [\d,]+ values of \S+word_embeddings",
    ),
    "infinite in fp32": (
        lambda w: (
            w
            | {
                "bert.encoder.layer.0.output.dense.bias": torch.full(
                    (16,), 1e300, dtype=torch.float64
                )
            }
        ),
        {},
        r"16 of 16 values of bert\.encoder\.layer\.0\.output\.dense\.bias",
    ),
    "integers": (
        lambda w: (
            w | {"bert.encoder.layer.0.output.dense.weight": torch.ones(16, 32, dtype=torch.int8)}
        ),
        {},
        "is I8",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_incomplete_or_invalid_checkpoint_is_refused(case, tiny_bert, tmp_path):
    change, config, message = REFUSED[case]
    shutil.copytree(tiny_bert, tmp_path / "model")
    directory = edit(tmp_path / "model", change, **config)
    with pytest.raises(BadInput, match=rf"^--model_name_or_path \S+: .*{message}") as refusal:
        load(directory)
    assert "\n" not in str(refusal.value) and "; " in str(refusal.value)


def test_shards_are_read_and_refused_if_they_contradict_their_index(checkpoint):
    plain = load(checkpoint("bert"))
    directory = checkpoint("bert")
    in_shards(directory)
    assert same(load(directory).model.state_dict(), plain.model.state_dict())
    index = directory / "model.safetensors.index.json"
    whole = index.read_text()
    index.write_text(whole.replace("cls.predictions.bias", "cls.predictions.decoder.bias"))
    with pytest.raises(
        BadInput,
        match=r"index\.json names cls\.predictions\.decoder\.bias, which a-\d\.safetensors",
    ):
        load(directory)
    index.write_text(whole)
    (directory / "a-2.safetensors").unlink()
    with pytest.raises(BadInput, match=r"index\.json names a-2\.safetensors, which is missing"):
        load(directory)


@pytest.mark.parametrize("family", ["deberta", "deberta-v2"])
def test_debertas_mlm_head_is_found_under_the_names_of_its_releases(family, checkpoint):
    released = checkpoint(family, legacy=False, name="released")
    assert any(
        name.startswith("lm_predictions.lm_head.")
        for name in load_file(released / "model.safetensors")
    )
    theirs = hf.AutoModelForMaskedLM.from_pretrained(released).eval()
    for change in (lambda w: w, SPELLINGS["DistributedDataParallel"]):
        loaded = load(edit(released, change, legacy=True), "mlm")
        ids = torch.randint(5, 99, (3, 9), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(loaded.model.eval()(ids).logits, theirs(ids).logits)
        assert not loaded.fresh and "the head (cls) is the checkpoint's" in loaded.remark
    with pytest.raises(BadInput, match=r"lacks cls\.predictions\.bias .*--fresh_head"):
        load(edit(released, without("lm_head.bias")), "mlm")


HEADLESS = {
    "an encoder alone": (
        "bert",
        hf.AutoModel,
        r"cls\.predictions\.bias and 5 more weights of the head that --task mlm trains",
    ),
    "a classifier": ("roberta", CLASSIFIER, r"lm_head\.bias and 5 more"),
    "a discriminator": (
        "electra",
        hf.AutoModelForPreTraining,
        r"generator_predictions\.LayerNorm\.weight and",
    ),
    "a question answerer": (
        "distilbert",
        hf.AutoModelForQuestionAnswering,
        r"vocab_transform\.weight and",
    ),
}


@pytest.mark.parametrize("case", HEADLESS)
def test_mlm_needs_the_checkpoints_own_head_or_fresh_head(case, checkpoint):
    family, auto, message = HEADLESS[case]
    directory = checkpoint(family, auto)
    with pytest.raises(BadInput, match=rf"lacks {message}.*--fresh_head"):
        load(directory, "mlm")
    first, second, other = (load(directory, "mlm", "--fresh_head", seed=seed) for seed in (1, 1, 2))
    assert first.fresh and same(first.model.state_dict(), second.model.state_dict())
    assert not same(first.model.state_dict(), other.model.state_dict())
    assert same(encoder(first.model), encoder(load(directory).model))


@pytest.mark.parametrize(
    ("family", "head"),
    [("bert", "cls.predictions"), ("roberta", "lm_head"), ("albert", "predictions")],
)
def test_a_tied_bias_of_the_mlm_head_may_have_either_name(family, head, checkpoint):
    old, new = f"{head}.bias", f"{head}.decoder.bias"
    plain = load(checkpoint(family), "mlm").model
    loaded = load(edit(checkpoint(family), renamed(old, new)), "mlm").model
    assert same(loaded.state_dict(), plain.state_dict()) and loaded.get_parameter(old).any()
    with pytest.raises(BadInput, match=rf"lacks {old}.*--fresh_head"):
        load(edit(checkpoint(family), without(old)), "mlm")


def test_every_output_mentions_a_fresh_mlm_head(checkpoint, search, text_data, capfd):
    out = search(
        task="mlm",
        dataset_path=text_data,
        model_name_or_path=checkpoint("bert", hf.AutoModel),
        max_steps=1,
        fresh_head=True,
        target_sparsity=0.1,
    )
    printed = capfd.readouterr()
    assert (
        "the head (cls) is initialised from --seed 42" in printed.err
        and "**a fresh MLM head: " in printed.out
    )
    assert all(
        "a fresh MLM head" in row["note"] for row in json.loads((out / "results.json").read_text())
    )
    assert Ticket.load(out / "ticket.safetensors").arguments["fresh_head"] is True
    args = parse(["--task", "mlm", "--fresh_head"])
    assert "a fresh MLM head" in summary.report(RunDirectory(out, args))


TUNED = (
    *("bert", "roberta", "distilbert", "electra", "mpnet"),
    *("deberta-v2", "modernbert", "gpt2", "albert"),
)


def tuned_elsewhere(checkpoint, family: str, auto=CLASSIFIER):
    """Directories with the same base model and three different heads."""
    first = checkpoint(family, auto, name="first")
    base = load_file(first / "model.safetensors")
    prefix = auto.from_pretrained(first).base_model_prefix
    yield first
    for count, more in (
        (2, {"problem_type": "multi_label_classification"}),
        (3, {"id2label": {0: "A", 1: "B", 2: "C"}}),
    ):
        options = {**more, "num_labels": count} if "id2label" not in more else more
        other = checkpoint(family, auto, seed=count, name=f"other{count}", **options)
        yield edit(
            other,
            lambda w: {
                n: base[n] if n.startswith(f"{prefix}.") else tensor for n, tensor in w.items()
            },
        )


@pytest.mark.parametrize("family", TUNED)
def test_the_head_depends_on_the_seed_only_not_on_the_checkpoints_head(family, checkpoint):
    directories = [*tuned_elsewhere(checkpoint, family)]
    loaded = [
        load(directory, labels=("no", "yes"), problem_type="single_label_classification")
        for directory in directories
    ]
    assert all(same(loaded[0].model.state_dict(), one.model.state_dict()) for one in loaded[1:])
    prefix = f"{loaded[0].model.base_model_prefix}."
    assert {n for n, _ in loaded[0].model.named_parameters() if not n.startswith(prefix)} == loaded[
        0
    ].fresh
    headless = edit(
        directories[0], lambda w: {n: tensor for n, tensor in w.items() if n.startswith(prefix)}
    )
    assert same(
        load(headless, labels=("no", "yes")).model.state_dict(), loaded[0].model.state_dict()
    )
    for config in (one.model.config for one in loaded):
        assert config.id2label == {0: "no", 1: "yes"} and config.label2id == {"no": 0, "yes": 1}
        assert config.problem_type == "single_label_classification"


def test_the_head_of_question_answering_depends_on_the_seed_only(checkpoint):
    directory = checkpoint("bert", hf.AutoModelForQuestionAnswering)
    theirs = load_file(directory / "model.safetensors")["qa_outputs.weight"]
    first, second = load(directory, "squad"), load(directory, "squad", seed=8)
    assert (
        first.fresh == {"qa_outputs.weight", "qa_outputs.bias"}
        and "own is not used" in first.remark
    )
    weights = [loaded.model.qa_outputs.weight for loaded in (first, second)]
    assert (
        not torch.equal(weights[0], theirs)
        and not torch.equal(*weights)
        and not first.model.qa_outputs.bias.any()
    )
    assert torch.equal(load(directory, "squad", "--keep_head").model.qa_outputs.weight, theirs)


def test_a_pooler_is_loaded_from_the_checkpoint_or_fresh(checkpoint):
    brought, lacking = load(checkpoint("bert", hf.AutoModel)), load(checkpoint("bert", name="mlm"))
    assert brought.fresh == {"classifier.weight", "classifier.bias"}
    assert lacking.fresh == brought.fresh | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert (
        "bert.pooler.dense is not in the checkpoint" in lacking.remark
        and "pooler" not in brought.remark
    )


@pytest.mark.parametrize("task", [x for x, kind in TASKS.items() if not kind.is_of_own_data])
def test_the_saved_config_is_the_tasks_own(task, checkpoint, tmp_path):
    labels = {"id2label": {"0": "TOXIC"}, "label2id": {"TOXIC": 0}, "problem_type": "regression"}
    directory = edit(checkpoint("bert"), lambda w: w, **labels, finetuning_task="toxicity")
    names, kind = ("LABEL_0", "LABEL_1"), None
    if TASKS[task].labels:
        names = TASKS[task].labels
        kind = "regression" if len(names) == 1 else "single_label_classification"
    load(directory, task, labels=names, problem_type=kind).model.save_pretrained(tmp_path / "saved")
    config = hf.AutoConfig.from_pretrained(tmp_path / "saved")
    assert (
        tuple(config.id2label.values()) == names
        and config.problem_type == kind
        and config.finetuning_task == task
    )
    assert config.label2id == {name: number for number, name in config.id2label.items()}


def flip(directory: Path) -> Path:
    """Swap the names of a checkpoint's labels."""
    return edit(directory, lambda w: w, id2label={"0": "POSITIVE", "1": "NEGATIVE"})


def answers(out: Path, task: str, rows: list[dict]) -> list:
    """What `pipeline()` returns with the last network of a search."""
    last = sorted(out.glob("rounds/*/model"))[-1]
    return hf.pipeline(task, str(last), device="cpu")(rows)


def test_pipeline_returns_the_labels_of_the_task(checkpoint, search, sst2_data):
    directory = flip(checkpoint("bert", CLASSIFIER))
    out = search(
        model_name_or_path=directory, target_sparsity=0.1, max_steps=20, learning_rate=0.02
    )
    rows = [json.loads(line) for line in (sst2_data / "validation.jsonl").read_text().splitlines()]
    answered = answers(out, "text-classification", [row["sentence"] for row in rows])
    right = [
        answer["label"] == ("negative", "positive")[row["label"]]
        for answer, row in zip(answered, rows, strict=True)
    ]
    accuracy = json.loads((out / "results.json").read_text())[-1]["eval"]["accuracy"]
    assert sum(right) / len(right) == pytest.approx(accuracy) and accuracy != 0.5


def write_pairs(
    folder: Path, names: tuple[str, str], labels: list, splits=("train", "validation")
) -> Path:
    for split in splits:
        rows = [
            {names[0]: sentence(i), names[1]: sentence(i + 1), "label": labels[i % len(labels)]}
            for i in range(24)
        ]
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def test_pipeline_works_for_three_classes_and_for_a_score(checkpoint, search, tmp_path):
    pair = {"text": sentence(1), "text_pair": sentence(2)}
    mnli = write_pairs(
        tmp_path / "mnli", ("premise", "hypothesis"), [0, 1, 2], ("train", "validation_matched")
    )
    order = {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"}
    directory = edit(checkpoint("roberta", CLASSIFIER, num_labels=3), lambda w: w, id2label=order)
    shared = {"target_sparsity": 0.1, "max_steps": 1, "model_name_or_path": directory}
    [answer] = answers(
        search(task="mnli", dataset_path=mnli, output_dir=tmp_path / "a", **shared),
        "text-classification",
        [pair],
    )
    assert answer["label"] in ("entailment", "neutral", "contradiction")
    stsb = write_pairs(tmp_path / "stsb", ("sentence1", "sentence2"), [0.0, 2.5, 5.0])
    out = search(task="stsb", dataset_path=stsb, output_dir=tmp_path / "b", **shared)
    [answer] = answers(out, "text-classification", [pair])
    last = sorted(out.glob("rounds/*/model"))[-1]
    encoded = hf.AutoTokenizer.from_pretrained(last)(*pair.values(), return_tensors="pt")
    with torch.no_grad():
        score = CLASSIFIER.from_pretrained(last).eval()(**encoded).logits.item()
    assert answer["label"] == "similarity" and answer["score"] == pytest.approx(score, abs=1e-5)


def test_pipeline_works_for_masked_tokens_and_squad_networks_are_saved(
    tokenizer, checkpoint, search, text_data, tmp_path
):
    directory = edit(
        checkpoint("bert"), lambda w: w, id2label={"0": "spam"}, problem_type="regression"
    )
    out = search(
        task="mlm",
        dataset_path=text_data,
        model_name_or_path=directory,
        target_sparsity=0.1,
        max_steps=1,
    )
    filled = answers(out, "fill-mask", [f"the cat sat on {tokenizer.mask_token} mat"])
    assert len(filled) == 5 and all(answer["sequence"].endswith("mat") for answer in filled)
    rows = [
        {
            "id": str(i),
            "context": sentence(i),
            "question": sentence(i + 3),
            "answers": {"text": [sentence(i).split()[0]], "answer_start": [0]},
        }
        for i in range(8)
    ]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"squad/{split}.jsonl", rows)
    out = search(
        task="squad",
        dataset_path=tmp_path / "squad",
        model_name_or_path=directory,
        max_steps=1,
        output_dir=tmp_path / "qa",
        target_sparsity=0.1,
    )
    last = sorted(out.glob("rounds/*/model"))[-1]
    assert hf.AutoConfig.from_pretrained(last).architectures == ["BertForQuestionAnswering"]


def test_keep_head_uses_the_checkpoints_head_and_reports_it(checkpoint, search, capfd):
    directory = checkpoint("roberta", CLASSIFIER, id2label={0: "Negative", 1: "POSITIVE"})
    out = search(model_name_or_path=directory, keep_head=True, target_sparsity=0.1, max_steps=1)
    theirs, theta = load_file(directory / "model.safetensors"), load_file(out / "theta.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in theta.items())
    printed = capfd.readouterr()
    assert (
        "the head (classifier) is the checkpoint's" in printed.err
        and "**a kept head: " in printed.out
    )
    assert "a kept head" in json.loads((out / "results.json").read_text())[0]["note"]


@pytest.mark.parametrize(
    "names", [{0: "0", 1: "1"}, {0: "LABEL_0", 1: "LABEL_1"}, {0: "Negative", 1: "POSITIVE"}]
)
def test_labels_without_names_have_the_tasks_order(names, checkpoint, small):
    flags = small(model_name_or_path=checkpoint("bert", CLASSIFIER, id2label=names), keep_head=True)
    assert registry.load_task(parse(flags)).model.config.id2label == {0: "negative", 1: "positive"}


def test_a_git_lfs_pointer_is_refused(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "model")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model/model.safetensors").write_text(pointer)
    with pytest.raises(
        BadInput, match=r"its model\.safetensors is a Git LFS pointer.*git lfs pull"
    ):
        load(tmp_path / "model")


UNFIT = {
    "swapped numbers": (
        {"id2label": {0: "LABEL_1", 1: "LABEL_0"}},
        "labels are LABEL_1, LABEL_0, and those of",
    ),
    "another order": (
        {"id2label": {0: "positive", 1: "negative"}},
        "labels are positive, negative, and those of --task",
    ),
    "other labels": (
        {"id2label": {0: "ham", 1: "spam"}},
        "labels are ham, spam, .* negative, positive, in this order",
    ),
    "long names": (
        {"id2label": {i: str(i) * 200 for i in range(2)}},
        r"labels are (0{200}), …, and those of --task",
    ),
    "another number": (
        {"num_labels": 3},
        r"lacks classifier\.weight and 1 more weight of shape \(2, 16\) of the head",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_keep_head_is_refused_if_the_head_does_not_fit(case, checkpoint, small, sst2_data):
    config, message = UNFIT[case]
    flags = small(model_name_or_path=checkpoint("bert", CLASSIFIER, **config), keep_head=True)
    with pytest.raises(BadInput, match=rf"{message}.*omit --keep_head"):
        registry.load_task(parse(flags))


def test_keep_head_is_refused_without_a_head(checkpoint):
    with pytest.raises(
        BadInput,
        match=r"lacks bert\.pooler\.dense\.weight and 3 more weights of the head that --keep_head",
    ):
        load(checkpoint("bert"), "sst2", "--keep_head")
    with pytest.raises(BadInput, match=r"lacks qa_outputs\.weight and 1 more weight of the head"):
        load(checkpoint("bert"), "squad", "--keep_head")


@pytest.fixture
def heads(monkeypatch) -> list[torch.Tensor]:
    """The classifier's weight at the start of every stage."""
    weights_seen, start = [], Run.start

    def watched(self, stage, weights, *args, **more):
        weights_seen.append(weights["classifier.weight"])
        start(self, stage, weights, *args, **more)

    monkeypatch.setattr(Run, "start", watched)
    return weights_seen


@pytest.mark.parametrize("keep", [False, True])
def test_each_seed_of_a_transfer_has_its_own_fresh_head_or_the_kept_one(
    keep, checkpoint, transfer, heads
):
    directory = checkpoint("bert", CLASSIFIER)
    transfer(1, 2, 3, model_name_or_path=directory, max_steps=0, keep_head=keep or None)
    theirs = load_file(directory / "model.safetensors")["classifier.weight"]
    assert [torch.equal(head, theirs) for head in heads] == 3 * [keep]
    assert torch.equal(heads[1], load(directory, seed=2).model.classifier.weight) is not keep
    assert torch.equal(heads[0], heads[1]) is keep and torch.equal(heads[1], heads[2]) is keep


def begun_before(out: Path) -> None:
    """Remove from a run's arguments.json the flags that version 0.1.0 did not have."""
    path = out / "arguments.json"
    before = json.loads(path.read_text())
    del before["keep_head"], before["fresh_head"]
    path.write_text(json.dumps(before))


@pytest.mark.parametrize("old", [True, False])
def test_a_run_begun_with_the_checkpoints_head_continues_with_it(old, checkpoint, search, capfd):
    given = {
        "model_name_or_path": checkpoint("bert", CLASSIFIER),
        "max_steps": 2,
        "target_sparsity": 0.1,
    }
    out = search(**given)
    if old:
        begun_before(out)
    shutil.rmtree(out / "rounds")
    for name in ("complete", "theta.safetensors", "results.json", "ticket.safetensors"):
        (out / name).unlink()
    capfd.readouterr()
    search(**given)
    theirs = load_file(given["model_name_or_path"] / "model.safetensors")["classifier.weight"]
    assert torch.equal(load_file(out / "theta.safetensors")["classifier.weight"], theirs) is old
    assert (
        "is the checkpoint's, as in version 0.1.0, which began this run" in capfd.readouterr().err
    ) is old
    assert Ticket.load(out / "ticket.safetensors").arguments["keep_head"] is (
        None if old else False
    )


def test_further_seeds_of_an_old_transfer_use_the_checkpoints_head(checkpoint, transfer, heads):
    directory = checkpoint("bert", CLASSIFIER)
    begun_before(transfer(1, model_name_or_path=directory, max_steps=0))
    theirs = load_file(directory / "model.safetensors")["classifier.weight"]
    transfer(1, 2, 3, model_name_or_path=directory, max_steps=0)
    assert [torch.equal(head, theirs) for head in heads] == [False, True, True]

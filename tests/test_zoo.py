"""Every family of encoders: the search prunes the set counted by hand, or refuses the family."""

import json
import math
import re

import pytest
import torch
import transformers as hf
from accelerate.state import AcceleratorState
from conftest import sentence, write_jsonl
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers.models.auto import modeling_auto
from zoo import EACH, LEFT_OUT, UNSEEDED, ZOO, Family

from lth_scale import Ticket
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.pruning import controls
from lth_scale.tasks import mlm, registry
from lth_scale.training import loop, networks, preparation

CLASSES = {
    "sst2": hf.AutoModelForSequenceClassification,
    "mlm": hf.AutoModelForMaskedLM,
    "squad": hf.AutoModelForQuestionAnswering,
}
NAMES = {
    "sst2": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "mlm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "squad": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}
KNOWN = {
    name: family for name, family in ZOO.items() if family.kind in hf.CONFIG_MAPPING
}  # to this transformers
WORDS = sorted({word for i in range(40) for word in sentence(i).split()})


def cases(taken: bool) -> list:
    """(name, task) of what is searched, or of what is refused."""
    return [
        pytest.param(name, task, id=f"{name}-{task}")
        for name, family in KNOWN.items()
        for task in EACH
        if task not in family.lacks and (task not in family.refused) == taken
    ]


@pytest.fixture(scope="session")
def two_separators(tokenizer):
    """The embedded tokenizer with two separators between the texts of a pair, like RoBERTa's."""
    from tokenizers.processors import TemplateProcessing

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    special = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=special
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **tokenizer.special_tokens_map)


@pytest.fixture(scope="session")
def proteins(tmp_path_factory):
    """ESM's tokenizer, which is Python only, with words for amino acids."""
    path = tmp_path_factory.mktemp("proteins") / "vocab.txt"
    path.write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *WORDS]))
    return hf.EsmTokenizer(path)


@pytest.fixture(scope="session")
def characters():
    """CANINE's tokenizer: code points, Python only, no vocabulary."""
    return hf.CanineTokenizer()


@pytest.fixture
def keep(request, tmp_path):
    """Save a checkpoint of a family as it would be published, with a tokenizer; return its path."""

    def go(family: Family, directory=tmp_path / "model"):
        tokenizer = request.getfixturevalue(family.tokenizer)
        special = {
            f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
            for name in ("pad", "sep", "cls")
        }
        config = hf.AutoConfig.for_model(family.kind, **family.config, **special)
        config.bos_token_id, config.eos_token_id = special["cls_token_id"], special["sep_token_id"]
        if hasattr(config, "vocab_size"):
            config.vocab_size = len(tokenizer)
        usual = "AutoModelForMaskedLM" if family.kind in NAMES["mlm"] else "AutoModel"
        torch.manual_seed(0)
        getattr(hf, family.saved or usual).from_config(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    return go


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Rows for the three tasks, from a few words to more than any network has positions for."""
    root = tmp_path_factory.mktemp("rows")
    for split, count in (("train", 16), ("validation", 8)):
        texts = [" ".join(sentence(i + j) for j in range(1 + i % 2 * 7)) for i in range(count)]
        write_jsonl(
            root / f"sst2/{split}.jsonl",
            [{"sentence": text, "label": i % 2} for i, text in enumerate(texts)],
        )
        write_jsonl(root / f"mlm/{split}.jsonl", [{"text": text} for text in texts * 2])
        write_jsonl(
            root / f"squad/{split}.jsonl", [question(i, text) for i, text in enumerate(texts)]
        )
    return root


def question(i: int, context: str) -> dict:
    """A row in SQuAD's columns that asks for the context's third word."""
    first, second, third, *_ = context.split()
    answers = {"text": [third], "answer_start": [len(f"{first} {second} ")]}
    return {"id": str(i), "context": context, "question": f"{second} {first}", "answers": answers}


def flags(task: str, directory, rows, **more) -> dict:
    """The flags of a search of two rounds, with longer rows than any network takes."""
    return {
        "task": task,
        "model_name_or_path": directory,
        "dataset_path": rows / task,
        "max_seq_length": 64,
        "max_steps": 2,
        "target_sparsity": 0.2,
        "prune_rate": 0.2,
        **more,
    }


@pytest.mark.parametrize(("name", "task"), cases(taken=True))
def test_a_search_prunes_what_was_counted_by_hand(name, task, keep, rows, search):
    family = KNOWN[name]
    directory = keep(family)
    out = search(**flags(task, directory, rows, **family.flags))
    ticket, row = (
        Ticket.load(out / "ticket.safetensors"),
        json.loads((out / "results.json").read_text())[-1],
    )
    pooler = family.pooler.get(task, 0)
    assert len(ticket.masks) == family.matrices + bool(pooler)
    assert row["prunable"] == ticket.prunable == family.weights + pooler
    assert row["pruned"] == ticket.pruned == round(0.2 * ticket.prunable)
    assert all(math.isfinite(value) for value in row["eval"].values())
    model, info = CLASSES[task].from_pretrained(out / "rounds/01/model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    trained = dict(model.base_model.named_parameters())
    assert sum(int((trained[name] == 0).sum()) for name in ticket.masks) == ticket.pruned
    assert all(not trained[name][~mask].any() for name, mask in ticket.masks.items())
    # θ₀ was the checkpoint's, and training has moved it
    checkpoint = dict(hf.AutoModel.from_pretrained(directory).named_parameters())
    theta = load_file(out / "theta.safetensors")
    full = {weight: name for name, weight in model.named_parameters()}
    assert all(torch.equal(theta[full[trained[name]]], checkpoint[name]) for name in ticket.masks)
    assert any(
        not torch.equal(trained[name], checkpoint[name] * mask)
        for name, mask in ticket.masks.items()
    )


@pytest.mark.parametrize(("name", "task"), cases(taken=False))
def test_an_unsupported_network_is_refused_in_one_line(name, task, keep, rows, search, tmp_path):
    family = KNOWN[name]
    directory = keep(family)
    with pytest.raises(BadInput, match=family.refused[task]) as refusal:
        search(**flags(task, directory, rows, **family.flags))
    said = str(refusal.value)
    assert (
        "\n" not in said and "--" in said and ";" in said
    )  # one line that names a flag and a remedy
    assert not (tmp_path / "out/rounds").exists()


@pytest.mark.parametrize(
    ("name", "task"), [("gpt2", "mlm"), ("gte", "squad"), ("splinter", "sst2")]
)
def test_a_family_without_a_network_for_the_task_is_refused_by_name(name, task, keep, rows, search):
    with pytest.raises(BadInput, match=rf"--task {task} needs .*{CLASSES[task].__name__}.*; use"):
        search(**flags(task, keep(KNOWN[name]), rows))


@pytest.mark.parametrize("name", KNOWN)
def test_rewinding_restores_the_whole_training_state(name, keep, rows, small, caplog):
    family = KNOWN[name]
    task = next((task for task in EACH if task not in {*family.lacks, *family.refused}), None)
    if task is None:
        pytest.skip("is refused")
    AcceleratorState._reset_state(reset_partial_state=True)
    args = parse(small(**flags(task, keep(family), rows, **family.flags)))
    net = networks.prepare(preparation.make_accelerator(args), registry.load_task(args), args)
    assert ("--seed does not control" in caplog.text) == (name in UNSEEDED)
    if name in UNSEEDED:
        return
    start, masks = (
        dict(net.initial),
        {name: torch.rand(piece.shape) > 0.5 for name, piece in net.targets.items()},
    )
    found = []
    for _ in range(2):
        networks.restart(net, start, masks, step=0, seed=7)
        loop.train(
            net, 2, lambda step: 0.01, lambda step, loss: None
        )  # asserts that the masks held
        found.append((net.engine.full_weights(), loop.evaluate(net).scores))
    (first, scored), (second, again) = found
    assert scored == again
    assert first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
    # and the controls know its names: a whole network drawn anew, the same for the same seed
    given = controls.Subnetwork(start, masks, net.names, net.engine.meta_model)
    drawn, same = (controls.reinit(given, seed=3).weights for _ in range(2))
    assert drawn.keys() == start.keys()
    assert all(
        torch.equal(drawn[name], same[name]) and drawn[name].isfinite().all() for name in drawn
    )
    shuffled = controls.shuffle_within(given, seed=3)
    for name in masks:
        before, after = given.matrix(name).flatten(), shuffled.matrix(name).flatten()
        assert torch.equal(before.sort().values, after.sort().values)
        assert not (before.any() and torch.equal(before, after))


@pytest.mark.parametrize(
    "name",
    [name for name, family in KNOWN.items() if "mlm" not in {*family.lacks, *family.refused}],
)
def test_the_loss_at_masked_positions_is_that_of_the_plain_network(name, keep):
    torch.manual_seed(1)
    model = hf.AutoModelForMaskedLM.from_pretrained(keep(KNOWN[name])).eval()
    length = KNOWN[name].config.get(
        "segment_means_seq_len", 40
    )  # Nystromformer's, where there is no other
    ids = torch.randint(5, model.config.vocab_size, (2, length))
    chosen = torch.rand(ids.shape) < 0.2
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(~chosen, -100),
    }
    torch.manual_seed(2)  # of Reformer's hashes
    logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits[chosen]
    mlm.choose_positions(model)
    torch.manual_seed(2)
    loss, found = mlm.chosen_loss(model, batch)
    torch.testing.assert_close(found, logits)
    torch.testing.assert_close(loss, F.cross_entropy(logits, ids[chosen]))


def test_the_zoo_names_what_it_leaves_out():
    families = {family.kind for family in ZOO.values()}
    known = set().union(*NAMES.values())
    assert not known - families - LEFT_OUT.keys(), "give these a row, or a reason"
    assert not families & LEFT_OUT.keys()
    assert len(families) >= 50
    for name, family in KNOWN.items():
        assert {task for task in EACH if family.kind not in NAMES[task]} <= {*family.lacks}, name


@pytest.mark.parametrize(
    ("name", "task"), [("squeezebert", "sst2"), ("mobilebert", "mlm"), ("lilt", "squad")]
)
def test_the_command_accepts_an_unusual_family(name, task, keep, rows, small, command, tmp_path):
    run = command("lth_scale.imp", *small(**flags(task, keep(KNOWN[name]), rows)))
    assert run.returncode == 0 and "Traceback" not in run.stderr
    assert re.search(rf"the ticket +{tmp_path}/out/ticket.safetensors", run.stdout)

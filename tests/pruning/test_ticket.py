"""Tickets: the file format, application, overlap, and the command that prints one."""

import hashlib
import json
import re
import tracemalloc
from dataclasses import replace

import numpy
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from zoo import ARCHITECTURES

from lth_scale import Ticket, chance_similarity
from lth_scale.config.arguments import Training
from lth_scale.config.texts import printable
from lth_scale.pruning.prunable_set import base_digest, digest, prunable
from lth_scale.pruning.ticket_command import describe
from lth_scale.tasks.loading import load_model
from lth_scale.ticket import main


def tiny(layers: int = 2, hidden: int = 16, **head) -> hf.PreTrainedModel:
    torch.manual_seed(1)
    return hf.BertModel(configuration(hidden_size=hidden, num_hidden_layers=layers), **head)


def configuration(**options) -> hf.BertConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "vocab_size": 50, "max_position_embeddings": 20}
    return hf.BertConfig(**sizes | options)


def ticket_for(model, keep: float = 0.4, seed: int = 0) -> Ticket:
    generator = torch.Generator().manual_seed(seed)
    masks = {
        name: torch.rand(w.shape, generator=generator) < keep for name, w in prunable(model).items()
    }
    return Ticket(
        masks,
        base_model="tiny",
        base_revision="r1",
        theta_sha256="ab",
        task="sst2",
        arguments={"seed": 7},
    )


@pytest.fixture
def saved(tmp_path):
    ticket = ticket_for(tiny())
    path = tmp_path / "t.safetensors"
    ticket.save(path)
    return ticket, path


def test_a_ticket_is_loaded_as_it_was_saved(saved):
    ticket, path = saved
    back = Ticket.load(path)
    assert list(back.masks) == list(ticket.masks)
    assert all(torch.equal(back.masks[name], mask) for name, mask in ticket.masks.items())
    assert replace(back, masks={}) == replace(ticket, masks={})
    assert (back.pruned, back.prunable) == (ticket.pruned, ticket.prunable)


def test_the_file_is_the_published_format(saved):
    ticket, path = saved
    with safe_open(path, "numpy") as file:
        meta, name = file.metadata(), "encoder.layer.1.output.dense.weight"
        packed = file.get_tensor(name)
    bits = numpy.unpackbits(packed, bitorder="little")[: ticket.masks[name].numel()]
    assert packed.dtype == numpy.uint8
    assert numpy.array_equal(
        bits.reshape(json.loads(meta["shapes"])[name]), ticket.masks[name].numpy()
    )
    assert meta["format"] == "lth_scale.ticket/1"
    assert (int(meta["pruned"]), int(meta["prunable"])) == (ticket.pruned, ticket.prunable)
    assert float(meta["sparsity"]) == ticket.pruned / ticket.prunable
    assert json.loads(meta["arguments"]) == {"seed": 7}


def test_apply_zeroes_the_pruned_weights_and_nothing_else():
    model, twin = tiny(), tiny()
    ticket = ticket_for(model)
    assert ticket.apply(model) is model
    before = dict(twin.named_parameters())
    for name, weight in model.named_parameters():
        expected = before[name] * ticket.masks[name] if name in ticket.masks else before[name]
        assert torch.equal(weight, expected), name


def test_a_ticket_applies_if_only_one_side_has_a_pooler():
    with_pooler, without = tiny(), tiny(add_pooling_layer=False)
    ticket_for(with_pooler).apply(without)
    ticket_for(without).apply(with_pooler)
    assert with_pooler.pooler.dense.weight.all()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (dict(layers=3), r"no mask for encoder\.layer\.2\."),
        (dict(layers=1), r"the model has no encoder\.layer\.1\."),
        (
            dict(hidden=8),
            r"encoder\.layer\.0\.attention\.self\.query\.weight is \(16, 16\).*\(8, 8\)",
        ),
    ],
)
def test_a_ticket_of_another_model_is_refused_by_parameter(other, named):
    model = tiny(**other)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with pytest.raises(ValueError, match=named):
        ticket_for(tiny()).apply(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_overlap_is_the_share_of_kept_weights_that_both_keep():
    ours = Ticket(
        {"a": torch.tensor([[True, True, True, False]]), "b": torch.tensor([[True, False]])}
    )
    theirs = Ticket(
        {"a": torch.tensor([[True, False, False, True]]), "b": torch.tensor([[True, True]])}
    )
    assert ours.overlap(theirs) == {"a": 1 / 3, "b": 1.0, "all": 2 / 4}
    assert ours.overlap(ours)["all"] == 1.0


def contents(path) -> tuple[dict, dict]:
    with safe_open(path, "numpy") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def rewrite(path, change_meta=None, change_tensors=None):
    meta, tensors = contents(path)
    save_file(tensors | (change_tensors or {}), path, metadata=meta | (change_meta or {}))


FIRST = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("meta", "tensors", "message"),
    [
        ({"format": "pt"}, None, "its format is 'pt'"),
        ({"pruned": "1"}, None, "it states"),
        ({"shapes": "{}"}, None, "names of shapes and tensors differ"),
        ({"shapes": "["}, None, "not a valid"),
        ({"arguments": "x"}, None, "not a valid"),
        (None, {FIRST: numpy.zeros(3, numpy.uint8)}, "3 bytes of uint8"),
        (None, {FIRST: numpy.zeros(32, numpy.int8)}, "bytes of int8"),
        (None, {"extra": numpy.zeros(1, numpy.uint8)}, "names of shapes and tensors differ"),
    ],
)
def test_an_inconsistent_ticket_file_is_refused(saved, meta, tensors, message):
    rewrite(saved[1], meta, tensors)
    with pytest.raises(ValueError, match=message):
        Ticket.load(saved[1])


def test_bits_set_past_the_end_are_refused(tmp_path):
    Ticket({"a": torch.ones(3, 3, dtype=torch.bool)}).save(tmp_path / "t.safetensors")
    rewrite(tmp_path / "t.safetensors", None, {"a": numpy.full(2, 255, numpy.uint8)})
    with pytest.raises(ValueError, match="past its end"):
        Ticket.load(tmp_path / "t.safetensors")


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(saved, size):
    content = saved[1].read_bytes()
    saved[1].write_bytes(content[:size])
    with pytest.raises(ValueError, match="cannot be read as a ticket"):
        Ticket.load(saved[1])


def test_the_digest_depends_on_names_shapes_and_every_bit():
    weights = {"a": torch.ones(2, 3)}
    changed = {"a": torch.ones(2, 3)}
    changed["a"][1, 2] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    digests = {
        digest(w) for w in (weights, changed, {"b": torch.ones(2, 3)}, {"a": torch.ones(3, 2)})
    }
    assert len(digests) == 4


def test_the_command_prints_totals_provenance_and_a_bar_a_matrix(saved, command):
    ticket, path = saved
    done = command("lth_scale.ticket", str(path))
    assert done.returncode == 0, done.stderr
    assert f"{ticket.pruned:,} of {ticket.prunable:,}" in done.stdout
    assert "tiny@r1" in done.stdout and "--seed 7" in done.stdout
    bars = [line for line in done.stdout.splitlines() if "█" in line]
    assert len(bars) == len(ticket.masks)
    assert f"{ticket.layer_sparsity()[FIRST]:.2%}" in bars[0]


def test_the_base_digest_is_over_sorted_names_shapes_and_fp32_values_of_the_encoder():
    model = with_head("SequenceClassification of 2")
    sha = hashlib.sha256()
    for name, weight in sorted(model.bert.state_dict().items()):
        if not name.startswith("pooler."):
            sha.update(
                f"{name}{tuple(weight.shape)}".encode() + weight.numpy().astype("<f4").tobytes()
            )
    assert base_digest(model) == base_digest(model.bert) == sha.hexdigest()


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_base_digest_is_the_same_for_every_file_format_and_head(family, tokenizer, tmp_path):
    kind, sizes = ARCHITECTURES[family]
    config = kind(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    torch.manual_seed(0)
    model = hf.AutoModelForMaskedLM.from_config(config).half()
    model.save_pretrained(tmp_path / "fp16")
    model.float().save_pretrained(tmp_path / "fp32")
    model.save_pretrained(tmp_path / "engine", max_shard_size="9KB")
    assert len([*(tmp_path / "engine").glob("*.safetensors")]) > 2
    mlm, sst2, squad = (
        (task, getattr(hf, f"AutoModelFor{head}"))
        for task, head in (
            ("mlm", "MaskedLM"),
            ("sst2", "SequenceClassification"),
            ("squad", "QuestionAnswering"),
        )
    )
    digests = set()
    for form, (task, head), seed in zip(
        ("fp16", "fp32", "engine", "fp16"), (mlm, sst2, squad, sst2), (1, 2, 3, 4), strict=True
    ):
        args = Training(task=task, model_name_or_path=str(tmp_path / form), seed=seed)
        loaded = load_model(args, head, tokenizer)
        digests.add(base_digest(loaded.model, loaded.fresh))
    assert digests == {
        base_digest(hf.AutoModel.from_pretrained(tmp_path / "fp32", dtype=torch.float32))
    }


def test_the_base_digest_is_the_same_with_a_pooler_and_under_old_names(tmp_path):
    model = tiny()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    old = {
        f"bert.{re.sub('LayerNorm.weight$', 'LayerNorm.gamma', name)}": weight
        for name, weight in weights.items()
    }
    old = {
        re.sub("LayerNorm.bias$", "LayerNorm.beta", name): weight for name, weight in old.items()
    }
    none = {name: weight for name, weight in weights.items() if not name.startswith("pooler.")}
    digests = {base_digest(model)}
    for form, stored in {"with": weights, "none": none, "old": old}.items():
        model.config.save_pretrained(tmp_path / form)
        save_file(
            {name: w.numpy() for name, w in stored.items()},
            tmp_path / form / "model.safetensors",
            {"format": "pt"},
        )
        for head in (hf.AutoModelForSequenceClassification, hf.AutoModelForQuestionAnswering):
            digests.add(base_digest(head.from_pretrained(tmp_path / form)))
    assert len(digests) == 1


def test_the_base_digest_depends_on_every_value_name_and_shape_of_the_encoder_but_not_on_the_head():
    known = {base_digest(model) for model in (tiny(), tiny(layers=3), tiny(hidden=8))}
    for name in (
        "embeddings.word_embeddings.weight",
        "encoder.layer.1.output.LayerNorm.bias",
        FIRST,
    ):
        model = tiny()
        weight = model.get_parameter(name).data.view(-1)
        weight[-1] = torch.nextafter(weight[-1], torch.tensor(9.0))
        known.add(base_digest(model))
    assert len(known) == 3 + 3
    model = with_head("MaskedLM")
    before = base_digest(model)
    torch.nn.init.ones_(model.cls.predictions.transform.dense.weight)
    assert base_digest(model) == before


def test_parameters_that_the_checkpoint_lacks_are_not_in_the_base_digest(tmp_path):
    model = with_head("MaskedLM")
    name = "embeddings.token_type_embeddings.weight"
    first = base_digest(model, {f"bert.{name}"})
    torch.nn.init.ones_(model.bert.get_parameter(name))
    assert base_digest(model, {f"bert.{name}"}) == first != base_digest(model)


A, B = "a" * 64, "b" * 64


def of_base(sha: str, **more) -> Ticket:
    return replace(ticket_for(tiny(), **more), base_sha256=sha, base_model=f"model {sha[:1]}")


def test_a_ticket_stores_its_base_digest(tmp_path):
    path = tmp_path / "t.safetensors"
    of_base(A).save(path)
    assert contents(path)[0]["base_sha256"] == A == Ticket.load(path).base_sha256
    assert f"base_sha256 {A}" in describe(of_base(A), "t")
    assert "base_sha256 unknown" in describe(of_base(""), "t")


@pytest.mark.parametrize("sha", ["x", "A" * 64, "a" * 63, f"{A}\n"])
def test_an_invalid_base_digest_is_refused(sha, tmp_path):
    of_base(sha).save(tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="base_sha256 is not a SHA-256"):
        Ticket.load(tmp_path / "t.safetensors")


def test_a_ticket_found_under_an_earlier_name_has_the_current_one(tmp_path):
    Ticket(ticket_for(tiny()).masks, arguments={"score": "movement"}).save(tmp_path / "t")
    assert "movement" in contents(tmp_path / "t")[0]["arguments"]
    assert Ticket.load(tmp_path / "t").arguments == {"score": "accumulated_taylor"}


@pytest.mark.parametrize("operation", ["overlap", "union", "intersect"])
def test_tickets_of_two_bases_are_compared_and_combined_only_if_allowed(
    operation, tmp_path, monkeypatch, caplog
):
    ticket, other = of_base(A), of_base(B, seed=1)
    combine, bases = (
        getattr(ticket, operation),
        f"{A[:12]}… of 'model a' and {B[:12]}… of 'model b'",
    )
    with pytest.raises(ValueError, match=f"{bases}.*--allow_other_weights"):
        combine(other)
    same = combine(of_base(A, seed=1))
    combined = combine(other, allow_other_weights=True)
    if operation == "overlap":
        assert combined == same
    else:
        assert combined.arguments["allow_other_weights"] is True
        assert "allow_other_weights" not in same.arguments
        assert combined.base_sha256 == same.base_sha256 == A
    # unknown bases are not compared
    assert combine(of_base("", seed=1)) and getattr(of_base(""), operation)(other)
    monkeypatch.chdir(tmp_path)
    ticket.save("a")
    other.save("b")
    output = ["--output", "c"] if operation != "overlap" else []
    argv = ["ticket", "a", f"--{operation}", "b", *output]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(ValueError, match=f"--{operation} b: tickets of two bases"):
        main()
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr("sys.argv", [*argv, "--allow_other_weights"])
    main()
    assert (tmp_path / "c").exists() == (operation != "overlap")
    assert caplog.messages == [f"--{operation} b: belongs to other weights (--allow_other_weights)"]


def test_the_command_warns_that_the_base_of_an_old_ticket_is_not_compared(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    of_base(A).save("new")
    of_base("").save("old")
    monkeypatch.setattr("sys.argv", ["ticket", "new", "--overlap", "old"])
    main()
    assert caplog.messages == ["old: has no base_sha256, so bases are not compared"]


def test_apply_takes_any_weights_of_the_right_shapes():
    model = tiny()
    torch.nn.init.ones_(model.get_parameter(FIRST))
    ticket = of_base(A)
    assert torch.equal(ticket.apply(model).get_parameter(FIRST), ticket.masks[FIRST].float())


def test_union_and_intersection_by_hand():
    name, pooler = "encoder.layer.0.a.weight", "pooler.dense.weight"

    def bits(ticket: Ticket, name: str) -> list[int]:
        return ticket.masks[name].int().flatten().tolist()

    first = Ticket({name: torch.tensor([[1, 1, 0, 0]]).bool()})
    second = Ticket({name: torch.tensor([[1, 0, 1, 0]]).bool(), pooler: torch.tensor([[0]]).bool()})
    assert bits(first.union(second), name) == [1, 1, 1, 0]
    assert bits(first.intersect(second), name) == [1, 0, 0, 0]
    assert bits(first.union(second), pooler) == [0]
    assert first.overlap(second)["all"] == 0.5
    assert bits(first, name) == [1, 1, 0, 0]  # not modified


def test_tickets_of_two_networks_do_not_combine():
    for other in (ticket_for(tiny(layers=3)), ticket_for(tiny(hidden=8))):
        for operation in ("union", "intersect"):
            with pytest.raises(ValueError, match="two networks"):
                getattr(ticket_for(tiny()), operation)(other)
    with pytest.raises(ValueError, match="share no matrix"):
        ticket_for(tiny()).overlap(ticket_for(tiny(hidden=8)))


def test_the_command_combines_tickets_and_never_overwrites(saved, tmp_path, command):
    _, path = saved
    other = tmp_path / "o.safetensors"
    ticket_for(tiny(), seed=1).save(other)
    combined = tmp_path / "made.safetensors"
    done = command(
        "lth_scale.ticket", str(path), "--intersect", str(other), "--output", str(combined)
    )
    assert done.returncode == 0 and "found_by" in done.stdout
    first, second, both = (Ticket.load(each).masks for each in (path, other, combined))
    assert all(torch.equal(both[name], first[name] & second[name]) for name in first)
    again = command("lth_scale.ticket", str(path), "--union", str(other), "--output", str(combined))
    assert again.returncode == 2 and again.stderr.startswith("error: --output")
    shared = command("lth_scale.ticket", str(path), "--overlap", str(other))
    lines = [line.rsplit(maxsplit=3) for line in shared.stdout.splitlines()[1:]]
    assert shared.stdout.split()[:4] == ["share", "kept", "similarity", "chance"]
    assert [line[0] for line in lines][-10:] == [
        *("layer 0", "layer 1", "query", "key", "value"),
        *("attention output", "intermediate", "output", "pooler", "all"),
    ]
    ours, theirs = Ticket.load(path), Ticket.load(other)
    chance = chance_similarity(ours.sparsity, theirs.sparsity)
    levels = (ours.overlap(theirs)["all"], ours.similarity(theirs)["all"], chance)
    assert lines[-1][1:] == [f"{level:.2%}" for level in levels]


HEADS = {
    "MaskedLM": {},  # no pooler
    "QuestionAnswering": {"num_labels": 2},  # no pooler
    **{f"SequenceClassification of {n}": {"num_labels": n} for n in (1, 2, 3)},
}


def with_head(head: str) -> hf.PreTrainedModel:
    torch.manual_seed(1)
    return getattr(hf, f"BertFor{head.split()[0]}")(configuration(**HEADS[head]))


@pytest.mark.parametrize("source", HEADS)
@pytest.mark.parametrize("target", HEADS)
def test_a_ticket_applies_to_networks_with_other_heads(source, target):
    ticket, model = ticket_for(with_head(source)), with_head(target)
    ticket.apply(model)
    weights = prunable(model)
    for name, weight in weights.items():
        if name in ticket.masks:
            assert (
                torch.equal(weight != 0, ticket.masks[name] & (weight != 0))
                and not weight[~ticket.masks[name]].any()
            )
        else:
            assert name == "pooler.dense.weight" and weight.all()
    assert sum(int((weight == 0).sum()) for weight in weights.values()) == sum(
        int((~mask).sum()) for name, mask in ticket.masks.items() if name in weights
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A ticket, and its file's bytes."""
    path = tmp_path_factory.mktemp("ticket") / "t.safetensors"
    bits = torch.Generator().manual_seed(3)
    masks = {f"layer.{i}.weight": torch.rand(5, 7 + i, generator=bits) < 0.5 for i in range(2)}
    arguments = {"seed": 7, "pattern": "unstructured"}
    Ticket(masks, "google/tiny", "main", "ab" * 32, "sst2", 0.25, arguments).save(path)
    return Ticket.load(path), path.read_bytes(), path.with_name("changed.safetensors")


def is_refused_or_the_same(original, content: bytes) -> None:
    ticket, _, path = original
    path.write_bytes(content)
    try:
        back = Ticket.load(path)
    except ValueError as problem:
        assert str(path) in str(problem)
        return
    assert list(back.masks) == list(ticket.masks)
    assert all(torch.equal(back.masks[name], mask) for name, mask in ticket.masks.items())
    assert replace(back, masks={}) == replace(ticket, masks={})


@pytest.mark.parametrize("change", [1, 2, 16, 32, 128, 255])
def test_a_single_altered_byte_never_gives_another_ticket(original, change):
    content = original[1]
    for place in range(len(content)):
        is_refused_or_the_same(
            original, content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]
        )


def test_a_truncation_and_an_inserted_or_deleted_byte_never_give_another_ticket(original):
    content = original[1]
    for place in range(len(content)):
        is_refused_or_the_same(original, content[:place])
        is_refused_or_the_same(original, content[:place] + content[place + 1 :])
        is_refused_or_the_same(original, content[:place] + b" " + content[place:])


bytes_changed = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=9
)
QUICK = settings(max_examples=400, deadline=None, derandomize=True)


@QUICK
@given(changes=bytes_changed, last=st.booleans())
def test_altered_bytes_never_give_another_ticket(original, changes, last):
    content = bytearray(original[1])
    masks = 10 if last else len(content)  # the end of the file is the masks
    for place, change in changes:
        content[len(content) - masks + int(place * masks)] ^= change
    is_refused_or_the_same(original, bytes(content))


@QUICK
@given(place=st.floats(0, 1), gone=st.integers(0, 40), put=st.binary(max_size=40))
def test_replaced_bytes_never_give_another_ticket(original, place, gone, put):
    content = original[1]
    start = int(place * len(content))
    is_refused_or_the_same(original, content[:start] + put + content[start + gone :])


def test_two_swapped_bits_of_a_mask_are_detected(original):
    """The counts still agree: only the checksum can tell."""
    content = bytearray(original[1])
    first = next(
        i
        for i in range(len(content) - 10, len(content))
        if bin(content[i]).count("1") in range(1, 7)
    )
    content[first] = (content[first] << 1 | content[first] >> 7) & 255
    original[2].write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"it was altered|past its end"):
        Ticket.load(original[2])


def test_a_ticket_without_checksum_or_threshold_is_read(original):
    ticket, content, path = original
    for lacking in (("content_sha256",), ("content_sha256", "threshold")):
        path.write_bytes(content)
        meta, tensors = contents(path)
        save_file(
            tensors,
            path,
            metadata={name: text for name, text in meta.items() if name not in lacking},
        )
        assert all(
            torch.equal(mask, ticket.masks[name]) for name, mask in Ticket.load(path).masks.items()
        )


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = [
    *("shapes", "arguments", "pruned", "prunable", "sparsity"),
    *("threshold", "base_model", "task", "format"),
]


@settings(QUICK, max_examples=100)
@given(key=st.sampled_from(KEYS), value=anything, side=anything, which=st.integers(0, 3))
def test_hostile_metadata_is_refused_or_harmless(original, key, value, side, which):
    _, content, path = original
    path.write_bytes(content)
    meta, tensors = contents(path)
    del meta["content_sha256"]
    shapes = {**json.loads(meta["shapes"]), "layer.0.weight": [5, side] if which == 0 else side}
    patterns = {"pattern": value}
    meta[key] = (
        json.dumps(value)
        if which > 1
        else json.dumps({"shapes": shapes, "arguments": patterns}.get(key, value))
    )
    save_file(tensors, path, metadata=meta)
    try:
        back = Ticket.load(path)
    except ValueError:
        return
    assert all(torch.equal(mask, original[0].masks[name]) for name, mask in back.masks.items())
    assert "\x1b" not in printable(describe(back, path))


HOSTILE = [
    *(
        ("shapes", {"layer.0.weight": shape, "layer.1.weight": [5, 8]})
        for shape in (
            [2**40, 2**40],
            [10**4000, 7],
            [-5, -7],
            [5, -7, -1],
            [5, True],
            [5, 7.0],
            [[5, 7]],
            "57",
            [],
            None,
            [5, 7, 0],
            [1] * 35 + [35],
            {"a": 5},
            [2**62, 4],
        )
    ),
    ("shapes", {"../../evil": [5, 7], "layer.1.weight": [5, 8]}),
    ("shapes", [["a", [5, 7]]]),
    ("shapes", 7),
    ("arguments", [1]),
    ("arguments", "text"),
    ("arguments", None),
    ("arguments", {"pattern": 7}),
    ("arguments", {"pattern": ["2:4"]}),
    ("arguments", {"pattern": "9" * 5000 + ":4"}),
    ("pruned", -1),
    ("pruned", 1.5),
    ("sparsity", 2.0),
    ("threshold", float("nan")),
    ("threshold", float("-inf")),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_sizes_and_types_are_refused_before_memory_is_allocated(original, key, value):
    original[2].write_bytes(original[1])
    rewrite(original[2], {key: json.dumps(value), "content_sha256": ""})
    tracemalloc.start()
    with pytest.raises(ValueError, match="not a valid"):
        Ticket.load(original[2])
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "header",
    [
        '{"__metadata__":{"format":"x"},"a":{"dtype":"U8","shape":[999999999999],"data_offsets":[0,999999999999]}}',
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}',
        '{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}',
        '{"a":' * 9000,
        '{"__metadata__":{"format":1}}',
    ],
    ids=range(6),
)
@pytest.mark.parametrize("length", [None, 2**63, 10**8 + 1, 0])
def test_hostile_headers_are_refused(tmp_path, header, length):
    path = tmp_path / "t.safetensors"
    path.write_bytes(
        (len(header) if length is None else length).to_bytes(8, "little") + header.encode() + b"\0"
    )
    with pytest.raises(ValueError, match=r"t\.safetensors"):
        Ticket.load(path)


def test_names_in_a_ticket_are_never_written_to_and_never_control_a_terminal(
    tmp_path, monkeypatch, capsys
):
    names = ("../../evil.weight", "/evil\x1b[2J")
    masks = {name: torch.ones(2, 2, dtype=torch.bool) for name in names}
    home = tmp_path / "a/b/c"
    Ticket(
        masks, "../evil\x1b]0;x\x07", "../r", "../t", "../task", 0.0, {"output_dir": "../../evil"}
    ).save(home / "t")
    monkeypatch.chdir(home)
    for argv in (["t"], ["t", "--union", "t", "--output", "made"], ["t", "--overlap", "t"]):
        monkeypatch.setattr("sys.argv", ["ticket", *argv])
        main()
        assert "\x1b" not in (out := capsys.readouterr().out) and "evil" in out
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {home / "t", home / "made"}

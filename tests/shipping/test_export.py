"""Every format of every family has the outputs of its source, or is refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from conftest import SIZES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from zoo import ARCHITECTURES, ROOM

from lth_scale import Ticket, load_exported
from lth_scale.config import files, manifest
from lth_scale.config.errors import BadInput, Stopped
from lth_scale.export import COMMAND, main
from lth_scale.pruning.prunable_set import prunable
from lth_scale.shipping.export import writing
from lth_scale.shipping.export.export import export
from lth_scale.shipping.export.formats.compact import pack_compact, unpack_compact
from lth_scale.shipping.export.formats.csr import pack_csr, to_csr, unpack_csr
from lth_scale.shipping.export.formats.onnx import OnnxModel
from lth_scale.shipping.export.formats.semi_structured import to_semi_structured
from lth_scale.shipping.export.formats.tensors import SafetensorsFormat, prunable_names
from lth_scale.shipping.export.loading import unique_state
from lth_scale.shipping.export.locations import MANIFEST, read_verified, write_manifest
from lth_scale.shipping.export.registry import FORMATS, FormatSpec, register_format
from lth_scale.shipping.export.source import load_source, real_inputs
from lth_scale.shipping.export.writing import difference

HEADS = {
    "classes": hf.AutoModelForSequenceClassification,
    "answers": hf.AutoModelForQuestionAnswering,
    "words": hf.AutoModelForMaskedLM,
    "encoder": hf.AutoModel,
}
IN_FP32 = ["dense", "compact", "csr", "native"]


def needs_kernel(kind: str) -> None:
    if kind == "native":
        native = pytest.importorskip("lth_scale.shipping.native.kernels")
        if why := native.unavailable():
            pytest.skip(why)


def prune(model, sparsity: float = 0.7):
    """Zero the smallest of each prunable matrix."""
    with torch.no_grad():
        for weight in prunable(model).values():
            weight[
                weight.abs()
                <= weight.abs().flatten().kthvalue(round(sparsity * weight.numel())).values
            ] = 0.0
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    """Make a checkpoint of a family with a head, 70 % pruned, once; returns its directory."""
    made = {}

    def go(family: str = "bert", head: str = "classes", with_tokenizer: bool = True) -> Path:
        key = (family, head, with_tokenizer)
        if key not in made:
            kind, sizes = ARCHITECTURES[family]
            torch.manual_seed(0)
            config = kind(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
            made[key] = tmp_path_factory.mktemp("-".join(map(str, key))) / "model"
            prune(HEADS[head].from_config(config)).save_pretrained(made[key])
            if with_tokenizer:
                tokenizer.save_pretrained(made[key])
        return made[key]

    return go


def largest_difference(path: Path, directory: Path) -> float:
    """The largest difference of any output of an export, relative to the largest of that output."""
    source, exported = load_source(str(path)), load_exported(directory)
    assert type(exported) in (type(source.model), OnnxModel) and not exported.training
    differences = [0.0]
    for batch in real_inputs(source)[0]:
        with torch.inference_mode():
            ours, theirs = source.model(**batch), exported(**batch)
        assert ours.keys() == theirs.keys() and type(ours) is type(theirs)
        differences += [
            float((theirs[name] - ours[name]).abs().max() / ours[name].abs().max()) for name in ours
        ]
    return max(differences)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (family, kind)
        for family in ARCHITECTURES
        for kind in IN_FP32
        if kind in ("dense", "compact")
        or family not in ("squeezebert", "convbert")  # whose convolutions are refused
    ],
)
def test_an_export_of_every_family_has_the_same_outputs(family, kind, checkpoint, tmp_path):
    needs_kernel(kind)
    path = checkpoint(family)
    made = export(str(path), kind, tmp_path / "out")
    assert (
        made["difference"]["relative"] <= 1e-4
        and largest_difference(path, tmp_path / "out") <= 1e-4
    )
    assert "SST-2, 8×" in made["difference"]["inputs"] and made["sparsity"] == pytest.approx(
        0.7, abs=0.01
    )


@pytest.mark.parametrize("kind", ["compact", "csr"])
@pytest.mark.parametrize("head", ["answers", "words", "encoder"])
def test_an_export_of_every_head_has_the_same_outputs(head, kind, checkpoint, tmp_path):
    export(str(checkpoint(head=head)), kind, tmp_path / "out")
    assert largest_difference(checkpoint(head=head), tmp_path / "out") <= 1e-4


@pytest.mark.parametrize(("family", "head"), [("bert", "encoder"), ("distilbert", "answers")])
def test_an_onnx_export_has_the_same_outputs_at_any_size(family, head, checkpoint, tmp_path):
    pytest.importorskip("onnxruntime")
    made = export(str(checkpoint(family, head)), "onnx", tmp_path / "out")
    assert {"model.onnx", "model.int8.onnx"} < made["files"].keys()
    assert made["difference"]["relative"] <= 1e-4 < made["difference_int8"]["relative"] < 0.5
    assert largest_difference(checkpoint(family, head), tmp_path / "out") <= 1e-4
    model, ids = load_exported(tmp_path / "out"), torch.full((3, 7), 9)
    assert torch.equal(model(ids, torch.ones_like(ids))[0], model(ids, return_dict=False)[0])
    with pytest.raises(BadInput, match="is a onnx export"):
        load_source(str(tmp_path / "out"))
    with pytest.raises(ValueError, match="labels"):
        model(ids, labels=torch.zeros(3))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 8), (16, 33)])
@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("way", [(pack_compact, unpack_compact), (pack_csr, unpack_csr)])
def test_packing_a_matrix_and_back_keeps_every_bit(way, kept, shape):
    pack, unpack = way
    weight = torch.randn(shape).where(torch.rand(shape) < kept, torch.tensor(0.0))
    weight.view(-1)[0], weight.view(-1)[-1] = -0.0, 1e-45
    assert torch.equal(
        unpack(pack(weight), weight.shape).view(torch.int32), weight.view(torch.int32)
    )


@pytest.mark.parametrize("kind", ["dense", "compact"])
def test_a_loaded_network_equals_its_source_to_the_bit(kind, checkpoint, tokenizer, tmp_path):
    source = load_source(str(checkpoint(head="words"))).model
    with torch.no_grad():
        for weight in prunable(source).values():
            weight[0, :2] = torch.tensor([1e-45, -1e-38])
    source.save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), kind, tmp_path / "out")
    ours, theirs = source.state_dict(), load_exported(tmp_path / "out").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(
        torch.equal(ours[name].view(torch.int32), theirs[name].view(torch.int32)) for name in ours
    )


@pytest.mark.parametrize("kind", ["compact", "csr"])
def test_minus_zeros_that_a_mask_leaves_are_not_stored(kind, checkpoint, tmp_path):
    source = load_source(str(checkpoint(head="words"))).model
    with torch.no_grad():
        for weight in prunable(source).values():
            weight.copy_(-weight.abs() * (torch.rand_like(weight) < 0.1))
    source.save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), kind, tmp_path / "out")
    with safe_open(tmp_path / "out" / f"{kind}.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.endswith(".values")]  # noqa: SIM118
        stored = sum(file.get_tensor(name).numel() for name in names)
    assert stored == sum(int((weight != 0).sum()) for weight in prunable(source).values())


def test_a_dense_export_is_loaded_by_plain_from_pretrained_with_its_zeros(checkpoint, tmp_path):
    export(str(checkpoint(head="words")), "dense", tmp_path / "out")
    model, info = hf.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours = prunable(load_source(str(checkpoint(head="words"))).model)
    assert all(torch.equal(weight, ours[name]) for name, weight in prunable(model).items())
    assert len(hf.AutoTokenizer.from_pretrained(tmp_path / "out")) == model.config.vocab_size


@pytest.mark.parametrize("kind", ["dense", "compact", "csr"])
def test_tied_embeddings_are_stored_once_and_tied_again(kind, checkpoint, tmp_path):
    export(str(checkpoint(head="words")), kind, tmp_path / "out")
    model = load_exported(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not [
        name for name in load_file(tmp_path / "out" / FORMATS[kind].file) if "decoder" in name
    ]


@pytest.mark.parametrize("kind", ["compact", "csr"])
def test_an_export_can_be_exported_again(kind, checkpoint, tmp_path):
    made = export(str(checkpoint()), kind, tmp_path / "first")
    again = export(str(tmp_path / "first"), "dense", tmp_path / "second")
    assert again["source_sha256"] == made["source_sha256"]


def bytes_of(model, width: int) -> int:
    """The bytes of a compact file at 90 %: bits, a tenth of the values, and all other tensors."""
    known = prunable_names(model)
    return sum(
        (count + 7) // 8 + (count - round(0.9 * count)) * width if name in known else count * width
        for name, count in ((name, each.numel()) for name, each in unique_state(model).items())
    )


def test_a_compact_bert_base_at_90_percent_has_the_promised_size(checkpoint, tmp_path):
    with torch.device("meta"):
        models = [kind(hf.BertConfig()) for kind in (hf.BertForMaskedLM, hf.BertModel)]
    assert all(bytes_of(model, 4) <= 145e6 and bytes_of(model, 2) <= 80e6 for model in models)
    model = prune(load_source(str(checkpoint())).model, 0.9)
    model.save_pretrained(tmp_path / "model")
    for dtype, width in (("float32", 4), ("float16", 2)):
        export(str(tmp_path / "model"), "compact", tmp_path / dtype, dtype)
        path = tmp_path / dtype / "compact.safetensors"
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size == header + bytes_of(model, width)


def test_a_half_precision_compact_export_computes_in_fp32_and_states_its_difference(
    checkpoint, tmp_path
):
    made = export(str(checkpoint()), "compact", tmp_path / "out", "float16")
    stored = load_file(tmp_path / "out/compact.safetensors")
    assert {each.dtype for each in stored.values()} == {torch.float16, torch.uint8}
    assert load_exported(tmp_path / "out").dtype == torch.float32
    assert 1e-6 < made["difference"]["relative"] < 1e-2


def test_values_beyond_half_precision_are_refused(checkpoint, tmp_path):
    model = load_source(str(checkpoint())).model
    model.get_input_embeddings().weight.data[5, 5] = 1e6
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(BadInput, match=r"--dtype float16: .*word_embeddings"):
        export(str(tmp_path / "model"), "compact", tmp_path / "new/out", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_csr_runs_in_inference_mode_and_on_every_shape_of_input(checkpoint):
    model = load_source(str(checkpoint())).model
    linear = model.bert.encoder.layer[0].attention.self.query
    sparse = to_csr(model).bert.encoder.layer[0].attention.self.query
    assert not prunable(model) and sparse.weight.col_indices().dtype == torch.int32
    with torch.inference_mode():
        for shape in ((16,), (3, 16), (2, 3, 16), (0, 16)):
            x = torch.randn(shape)
            torch.testing.assert_close(sparse(x), linear(x))


# Damage


@pytest.fixture
def made(request, checkpoint, tmp_path):
    needs_kernel(request.param)
    export(str(checkpoint(head="words")), request.param, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("made", IN_FP32, indirect=True)
def test_a_file_that_is_cut_flipped_or_missing_is_refused_by_name(made):
    for path in sorted(made.iterdir()):
        whole = path.read_bytes()
        flips = [
            whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            for at in (0, 8, len(whole) // 2, -2)
        ]
        for content in (*flips, whole[:-1], whole[: len(whole) // 2], b"", whole + b"\n", None):
            path.unlink() if content is None else path.write_bytes(content)
            with pytest.raises(BadInput, match=path.name) as error:
                load_exported(made)
            assert "\n" not in str(error.value)
        path.write_bytes(whole)
    load_exported(made)


@pytest.mark.parametrize("made", ["compact"], indirect=True)
def test_no_byte_of_the_manifest_can_change(made):
    path = made / MANIFEST
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 + at % 7)]) + whole[at + 1 :])
        with pytest.raises(BadInput, match=MANIFEST):
            read_verified(made)


FIRST, NORM = "bert.encoder.layer.0.attention.self.query.weight", "bert.embeddings.LayerNorm.bias"


def repack(directory: Path, change) -> None:
    path = directory / FORMATS[read_verified(directory)["kind"]].file
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def configure(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def put(part: str, at: int, value: int):
    return lambda d: repack(d, lambda t: t[f"{FIRST}.{part}"].__setitem__(at, value))


def store(name: str, tensor: torch.Tensor | None):
    return lambda d: repack(
        d, lambda t: t.pop(name) if tensor is None else t.update({name: tensor})
    )


def config(**changes):
    return lambda d: configure(d, **changes)


@pytest.mark.parametrize(
    ("made", "forge", "named"),
    [
        ("compact", put("bits", 0, 255), "bits"),
        ("compact", store(f"{FIRST}.bits", torch.zeros(3).byte()), "bits"),
        ("compact", store(f"{FIRST}.values", None), "values"),
        ("compact", store("extra", torch.zeros(1)), "extra"),
        ("compact", store(f"{FIRST}.more", torch.zeros(1)), "more"),
        ("dense", store(FIRST, torch.zeros(3)), "shape"),
        ("compact", store(NORM, None), NORM),
        ("compact", store(NORM, torch.zeros(3)), "shape"),
        ("csr", put("crow", 1, 99), "indices"),
        ("csr", put("crow", -1, 1), "rows"),
        ("csr", put("crow", 0, 1), "rows"),
        ("csr", put("col", 0, 99), "out of range"),
        ("csr", put("col", 0, -1), "out of range"),
        ("csr", put("col", 1, 0), "increase"),
        ("compact", config(hidden_size=2**40), "sizes|shape"),
        ("compact", config(intermediate_size=2**40), "shape"),
        ("compact", config(num_hidden_layers=10**9), "layers"),
        ("compact", config(num_attention_heads=0), "compact"),
        ("compact", config(architectures=["EvilModel"]), "EvilModel"),
        ("compact", config(architectures=7), "export"),
        ("compact", config(architectures=["Trainer"]), "Trainer"),
        ("compact", config(architectures=["RobertaModel"]), "RobertaModel"),
        ("compact", config(model_type="evil", auto_map={"AutoConfig": "evil.Evil"}), "evil|export"),
        ("native", store(f"{FIRST}.packed", torch.zeros(64).int()), "query.weight: "),
        ("native", store(f"{FIRST}.packed", torch.zeros(64)), "export"),
        ("native", store(f"{FIRST}.scale", torch.zeros(64)), "query.weight: "),
        ("dense", config(quantization_config={"quant_method": "bitsandbytes"}), "quantized"),
    ],
    indirect=["made"],
)
def test_a_forged_export_with_valid_digests_is_refused(made, forge, named):
    forge(made)
    write_manifest(made, unverified(made))
    with pytest.raises(BadInput, match=named) as error:
        load_exported(made)
    assert "\n" not in str(error.value)


def unverified(directory: Path) -> dict:
    return json.loads((directory / MANIFEST).read_text())


@pytest.mark.parametrize("made", ["dense"], indirect=True)
@pytest.mark.parametrize(
    "change", [{"files": {"../x": "0"}}, {"kind": "zip"}, {"dtype": "int8"}, {"pruned": "1"}]
)
def test_a_forged_manifest_is_refused(made, change):
    content = {key: value for key, value in unverified(made).items() if key != "sha256"} | change
    (made / MANIFEST).write_bytes(manifest.seal(files.as_json(content)))
    with pytest.raises(BadInput, match=MANIFEST):
        load_exported(made)


@pytest.mark.parametrize("made", ["compact"], indirect=True)
def test_attention_code_that_a_config_names_is_not_downloaded(made):
    configure(made, attn_implementation="somebody/kernels", _attn_implementation="somebody/kernels")
    write_manifest(made, unverified(made))
    assert load_exported(made).config._attn_implementation in ("sdpa", "eager")


# Sources


def test_a_search_and_its_last_round_are_exported_with_the_zeros_of_the_ticket(search, tmp_path):
    out = search()
    for path in (out, out / "rounds/03", out / "rounds/03/model"):
        export(str(path), "compact", tmp_path / f"of-{path.name}")
    assert len({read_verified(path)["source_sha256"] for path in tmp_path.glob("of-*")}) == 1
    source = load_source(str(out))
    assert source.run["task"] == "sst2" and source.sparsity == pytest.approx(0.3, abs=1e-3)
    assert (
        source.tokenizer and source.prunable == Ticket.load(out / "ticket.safetensors").prunable
    )  # no fresh pooler
    with pytest.raises(BadInput, match=r"rounds/01.*no network"):
        load_source(str(out / "rounds/01"))
    weights = load_file(out / "rounds/03/model/model.safetensors")
    weights[FIRST][:] = 1.0
    save_file(weights, out / "rounds/03/model/model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"layer.0.*is not zero"):
        load_source(str(out))


def test_a_bare_encoder_without_a_pooler_gets_none(tmp_path, tiny_bert, tokenizer):
    model = prune(
        hf.BertModel(hf.BertConfig(**SIZES, vocab_size=len(tokenizer)), add_pooling_layer=False)
    )
    model.save_pretrained(tmp_path / "model")
    for kind in ("compact", "csr"):
        export(str(tmp_path / "model"), kind, tmp_path / kind)
        assert (
            load_exported(tmp_path / kind).pooler is None
            and largest_difference(tmp_path / "model", tmp_path / kind) <= 1e-4
        )


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint, tmp_path):
    model = load_source(str(checkpoint())).model
    state = {name: each for name, each in model.state_dict().items() if "classifier" not in name}
    model.save_pretrained(tmp_path / "model", state_dict=state)
    with pytest.raises(BadInput, match="classifier"):
        load_source(str(tmp_path / "model"))


def test_a_checkpoint_that_names_no_class_is_a_bare_encoder(checkpoint, tmp_path):
    load_source(str(checkpoint())).model.save_pretrained(tmp_path / "model")
    configure(tmp_path / "model", architectures=None)
    assert type(load_source(str(tmp_path / "model")).model) is hf.BertModel


def test_without_a_tokenizer_inputs_are_random_ids_and_the_export_says_so(checkpoint, tmp_path):
    source = load_source(str(checkpoint(with_tokenizer=False)))
    batches, line = real_inputs(source)
    assert source.tokenizer is None and "random ids" in line
    assert torch.equal(batches[0]["input_ids"], real_inputs(source)[0][0]["input_ids"])
    made = export(str(source.path), "compact", tmp_path / "out")
    assert "random ids" in made["difference"]["inputs"]


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_inputs_are_a_padded_batch_of_8_and_one_sequence_of_the_greatest_length(
    family, with_tokenizer, checkpoint
):
    source = load_source(str(checkpoint(family, with_tokenizer=with_tokenizer)))
    (batch, single), _ = real_inputs(source)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert len(lengths) == 8 and len({*lengths}) > 3 and max(lengths) == batch["input_ids"].shape[1]
    pad = source.model.config.pad_token_id
    assert ((batch["input_ids"] == pad) == (batch["attention_mask"] == 0)).all()
    reserved = {"roberta": pad + 1, "mpnet": 2}.get(
        family, 0
    )  # positions up to the padding's are not for tokens
    assert single["input_ids"].shape == (1, ROOM["max_position_embeddings"] - reserved)


# Output directories


def snapshot(directory: Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in directory.rglob("*")}


def test_the_same_export_again_does_nothing_and_another_is_refused(checkpoint, tmp_path):
    first = export(str(checkpoint()), "compact", tmp_path / "out")
    before = snapshot(tmp_path)
    assert export(str(checkpoint()), "compact", tmp_path / "out") == first
    for path, kind, dtype in (
        (checkpoint(), "csr", None),
        (checkpoint(), "compact", "float16"),
        (checkpoint("roberta"), "compact", None),
    ):
        with pytest.raises(BadInput, match="holds an"):
            export(str(path), kind, tmp_path / "out", dtype)
    assert snapshot(tmp_path) == before


def test_an_export_with_other_outputs_is_not_kept(checkpoint, tmp_path, monkeypatch):
    for value in (2e-4, float("nan"), float("inf")):
        monkeypatch.setattr(
            writing, "difference", lambda *_, value=value: {"absolute": value, "relative": value}
        )
        with pytest.raises(Stopped, match="--format csr"):
            export(str(checkpoint()), "csr", tmp_path / "deep/er/out")
    assert not [*tmp_path.iterdir()]


def test_an_int8_export_with_nan_outputs_is_not_kept(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    differences = iter(
        [{"absolute": 0.0, "relative": 0.0}, {"absolute": float("nan"), "relative": float("nan")}]
    )
    monkeypatch.setattr(writing, "difference", lambda *_: next(differences))
    with pytest.raises(Stopped, match=r"model.int8.onnx are NaN or infinite"):
        export(str(checkpoint()), "onnx", tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_the_difference_is_that_of_the_worst_output_and_keeps_nan(checkpoint):
    source = load_source(str(checkpoint(head="answers")))
    batches, _ = real_inputs(source)
    other = load_source(str(checkpoint(head="answers"))).model
    assert difference(source.model, other, batches) == {"absolute": 0.0, "relative": 0.0}
    other.qa_outputs.bias.data[1] += 1.0
    assert difference(source.model, other, batches)["absolute"] == pytest.approx(1.0, abs=1e-5)
    other.qa_outputs.bias.data[0] = float("nan")
    assert (
        difference(source.model, other, batches)["relative"]
        != difference(source.model, other, batches)["relative"]
    )


def test_the_command_prints_size_sparsity_difference_and_how_to_load(
    checkpoint, command, monkeypatch, capsys, tmp_path
):
    flags = [str(checkpoint()), "--format", "compact", "--output_dir", str(tmp_path / "out")]
    done = command("lth_scale.export", *flags)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for text in (
        "MB (dense in fp32: ",
        "sparsity    69.9",
        "of the largest output",
        "SST-2",
        f"load_exported('{tmp_path}/out')",
    ):
        assert text in done.stdout
    monkeypatch.setattr(sys, "argv", ["export", *flags])
    main()
    assert capsys.readouterr().out == f"already exported; nothing was done\n{done.stdout}"


def test_the_command_imports_no_torch_before_its_flags_are_checked():
    code = (
        "import sys, lth_scale.export as m; m.COMMAND.parser().format_help(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_help_has_a_row_for_every_format():
    text = COMMAND.parser().format_help()
    assert all(f"  {name} " in text and spec.about in text for name, spec in FORMATS.items())


def test_a_format_of_a_third_party_is_exported_and_loaded(checkpoint, tmp_path, monkeypatch):
    def unpack(parts, shape):
        return parts["flat"].view(shape)

    monkeypatch.setattr(FORMATS, "_entries", dict(FORMATS))
    flat = SafetensorsFormat(lambda weight, dtype: {"flat": weight.flatten()}, unpack)
    register_format("flat", FormatSpec("one row", lambda: flat, ("float32",), "flat.safetensors"))
    made = export(str(checkpoint()), "flat", tmp_path / "out")
    assert made["kind"] == "flat" and made["difference"]["relative"] == 0
    assert largest_difference(checkpoint(), tmp_path / "out") == 0
    with pytest.raises(ValueError, match="registered already"):
        register_format("csr", FORMATS["flat"])


# Requirements of the machine


def semi_structured(model):
    with torch.no_grad():
        for weight in prunable(model).values():
            weight.view(-1, 4)[:, ::2] = 0.0
    return model


def test_2_4_is_refused_for_other_patterns_and_without_a_gpu(checkpoint, tmp_path):
    with pytest.raises(BadInput, match=r"encoder\.layer\.0.*--pattern 2:4"):
        export(str(checkpoint()), "2:4", tmp_path / "out")
    model = semi_structured(load_source(str(checkpoint())).model)
    model.save_pretrained(tmp_path / "model")
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match=r"capability 8\.0"):
            export(str(tmp_path / "model"), "2:4", tmp_path / "out")
        with pytest.raises(BadInput, match=r"capability 8\.0"):
            to_semi_structured(model, torch.bfloat16)
    model.bert.pooler.dense.weight.data[:] = 1.0
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(BadInput, match=r"pooler.*--pattern 2:4"):
        export(str(tmp_path / "model"), "2:4", tmp_path / "out")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_2_4_runs_on_a_gpu(dtype, tokenizer, tmp_path):
    sizes = {**SIZES, "hidden_size": 128, "intermediate_size": 256}
    config = hf.BertConfig(
        **sizes, vocab_size=len(tokenizer), architectures=["BertForSequenceClassification"]
    )
    semi_structured(hf.BertForSequenceClassification(config)).save_pretrained(tmp_path / "model")
    made = export(str(tmp_path / "model"), "2:4", tmp_path / "out", dtype)
    assert (
        made["difference"]["relative"] < 0.1
        and load_exported(tmp_path / "out").device.type == "cuda"
    )


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_native_export_loads_where_the_kernel_cannot_run(
    sparsity, checkpoint, tmp_path, monkeypatch, capsys
):
    needs_kernel("native")
    from lth_scale.shipping.native import kernels

    prune(load_source(str(checkpoint())).model, sparsity).save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), "native", tmp_path / "out")
    monkeypatch.setattr(kernels, "unavailable", lambda: "this machine has no AVX2")
    capsys.readouterr()
    assert largest_difference(tmp_path / "model", tmp_path / "out") <= 1e-4
    log = capsys.readouterr().err
    assert log.count("\n") == 1 and "this machine has no AVX2" in log
    with pytest.raises(BadInput, match=r"--format native: .*no AVX2"):
        export(str(tmp_path / "model"), "native", tmp_path / "new")


def test_an_int8_native_export_states_its_difference(checkpoint, tmp_path):
    needs_kernel("native")
    made = export(str(checkpoint()), "native", tmp_path / "out", "int8")
    assert 0 < made["difference"]["relative"] < 0.2
    load_source(str(tmp_path / "out"))


def test_onnx_without_its_packages_says_what_to_install(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BadInput, match=r"onnxruntime.*pip install 'lth_scale\[onnx\]'"):
        export(str(checkpoint()), "onnx", tmp_path / "out")
    assert not [*tmp_path.iterdir()]


OTHERS = {
    "gpt2": lambda n: hf.GPT2ForSequenceClassification(
        hf.GPT2Config(vocab_size=n, pad_token_id=0, n_embd=16, n_layer=2, n_head=2, n_positions=40)
    ),
    "squeezebert": lambda n: hf.SqueezeBertForSequenceClassification(
        hf.SqueezeBertConfig(**SIZES, vocab_size=n, embedding_size=16, q_groups=2)
    ),
    "convbert": lambda n: hf.ConvBertForSequenceClassification(
        hf.ConvBertConfig(
            **SIZES, vocab_size=n, embedding_size=16, head_ratio=1, conv_kernel_size=3
        )
    ),
}


@pytest.fixture
def other(request, tokenizer, tmp_path):
    """A checkpoint whose matrices are not all of nn.Linear, 70 % of them zero."""
    torch.manual_seed(0)
    model = prune(OTHERS[request.param](len(tokenizer)))
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize("other", OTHERS, indirect=True)
def test_matrices_of_other_modules_are_exported_whole_or_refused_by_name(other, tmp_path):
    for kind in ("dense", "compact"):
        made = export(str(other), kind, tmp_path / kind)
        assert (
            made["sparsity"] == pytest.approx(0.7, abs=0.01)
            and made["difference"]["relative"] < 1e-6
        )
        weights = prunable(load_exported(tmp_path / kind))
        assert sum(int((weight == 0).sum()) for weight in weights.values()) == made["pruned"]
    for kind in ("csr", "native", "2:4"):
        needs_kernel(kind)
        with pytest.raises(
            BadInput, match=rf"--format {kind}: \S+\.weight is a Conv1[dD], and sparse products"
        ):
            export(str(other), kind, tmp_path / kind)
        assert not (tmp_path / kind).exists()
    with pytest.raises(BadInput, match="--format csr: "):
        to_csr(load_source(str(other)).model)


@pytest.mark.parametrize("other", ["gpt2"], indirect=True)
def test_a_decoder_is_exported_to_onnx_without_its_cache(other, tmp_path):
    pytest.importorskip("onnxruntime")
    made, config = (
        export(str(other), "onnx", tmp_path / "onnx"),
        hf.AutoConfig.from_pretrained(other),
    )
    assert made["difference"]["relative"] <= 1e-4 and made["sparsity"] == pytest.approx(
        0.7, abs=0.01
    )
    saved = hf.AutoConfig.from_pretrained(tmp_path / "onnx")
    assert getattr(saved, "use_cache", None) == getattr(config, "use_cache", None)


@pytest.mark.parametrize("other", ["gpt2"], indirect=True)
def test_backends_that_cannot_run_a_conv1d_are_skipped_with_the_reason(other):
    from lth_scale.shipping.speed.registry import BACKENDS, Setup
    from lth_scale.shipping.speed.timing import unavailable

    setup = Setup(load_source(str(other)).model, [], 1, other)
    for name in ("csr", "native-fp32", "native-int8"):
        assert "h.0.attn.c_attn.weight is a Conv1D" in unavailable(BACKENDS[name], setup)


def test_ignored_matrices_do_not_count_in_the_sparsity_of_an_export(search, tmp_path):
    out = search(ignore=["query", "intermediate"], max_steps=1)
    made, ticket = (
        export(str(out), "compact", tmp_path / "compact"),
        Ticket.load(out / "ticket.safetensors"),
    )
    assert (made["pruned"], made["prunable"]) == (ticket.pruned, ticket.prunable) and len(
        ticket.masks
    ) == 8
    model = load_exported(tmp_path / "compact")
    assert sum(int((weight == 0).sum()) for weight in prunable(model).values()) == ticket.pruned

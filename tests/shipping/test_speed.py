"""speed: which engines run, what is claimed of them, what is restored, written and refused."""

import importlib
import json
import os
import threading

import pytest
import torch
from conftest import SIZES
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering, PreTrainedConfig
from transformers import BertForSequenceClassification as Classifier

from lth_scale import speed
from lth_scale.config.arguments import Arguments
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import resolve
from lth_scale.pruning.prunable_set import prunable
from lth_scale.shipping.export.source import load_source
from lth_scale.shipping.native import kernels, modules
from lth_scale.shipping.speed import accuracy, measure, report, timing
from lth_scale.shipping.speed.inputs import text_inputs
from lth_scale.shipping.speed.measure import Timing, ratio, verdict
from lth_scale.shipping.speed.registry import BACKENDS, EAGER, Backend, Setup, register_backend
from lth_scale.tasks import registry

QUICK = [
    "--report_to",
    "none",
    "--repeats",
    "4",
    "--warmup",
    "1",
    "--batch_size",
    "2",
    "--sequence_length",
    "16",
]


def save(directory, tokenizer, sparsity, kind=Classifier):
    """A tiny network with about that many zeros in it."""
    torch.manual_seed(0)
    model = kind(BertConfig(**SIZES, vocab_size=len(tokenizer)))
    with torch.no_grad():
        for weight in prunable(model).values():
            weight *= torch.rand_like(weight) >= sparsity
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def networks(tmp_path_factory, tokenizer):
    """Two sentence classifiers, 50 and 90 % sparse."""
    place = tmp_path_factory.mktemp("networks")
    return [save(place / f"tiny{percent}", tokenizer, percent / 100) for percent in (50, 90)]


@pytest.fixture(scope="module")
def checked(networks, sst2_data, tmp_path_factory):
    """The report on one network, scored and logged to MLflow: directory, JSON, Markdown."""
    output = tmp_path_factory.mktemp("checked") / "speed"
    flags = [
        *QUICK[2:],
        "--task",
        "sst2",
        "--dataset_path",
        str(sst2_data),
        "--output_dir",
        str(output),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{output.parent / 'store.db'}")
        speed.time_targets(speed.COMMAND.parse([str(networks[1]), *flags]))
    return (
        output,
        json.loads((output / "speed.json").read_text()),
        (output / "speed.md").read_text(),
    )


def test_every_engine_runs_or_is_skipped_by_name_with_its_reason(checked):
    rows = checked[1]["cells"][0]["rows"]
    assert list(rows) == list(BACKENDS)
    for name, row in rows.items():
        assert row["status"] in ("timed", "skipped"), (name, row["why"])
        assert (row["status"] == "timed") != bool(row["why"])
        assert f"| {name} |" in checked[2] and row["why"] in checked[2]
    assert "--device cuda" in rows["dense-fp16"]["why"] and "--device cuda" in rows["2:4"]["why"]
    assert {EAGER, "csr"} <= {name for name, row in rows.items() if row["status"] == "timed"}


def test_every_engine_gives_the_logits_and_the_score_of_the_dense_network(checked):
    timed = {
        name: row
        for name, row in checked[1]["cells"][0]["rows"].items()
        if row["status"] == "timed"
    }
    for name, row in timed.items():
        assert row["difference"] < {"fp32": 1e-4, "bf16": 0.1, "int8": 0.5}[row["precision"]], name
        assert abs(row["accuracy"]["loss"] - timed[EAGER]["accuracy"]["loss"]) < 0.1, name
        if row["precision"] == "fp32":
            assert row["accuracy"]["accuracy"] == timed[EAGER]["accuracy"]["accuracy"], name
    assert timed[EAGER]["difference"] == 0


def test_ratios_are_against_eager_and_against_the_best_dense(checked):
    (cell,) = checked[1]["cells"]
    timed = {name: row for name, row in cell["rows"].items() if row["status"] == "timed"}
    dense = {name: row["ms"][0] for name, row in timed.items() if not row["sparse"]}
    assert cell["best"]["any"] == min(dense, key=dense.__getitem__)
    assert timed[cell["best"]["any"]]["verdict_best"] == "the best dense"
    assert timed[EAGER]["times_eager"] == [1, 1, 1]
    for row in timed.values():
        assert row["times_best"][1] <= row["times_best"][0] <= row["times_best"][2]
        assert len(row["samples_ms"]) == 4 and row["cpu_ms"][0] > 0
    order = [line.split(" | ")[0][2:] for line in checked[2].splitlines() if line.startswith("| ")][
        2:
    ]
    assert [name for name in order if name in timed] == sorted(
        timed, key=lambda name: timed[name]["ms"][0]
    )


def test_the_page_names_the_machine_and_what_another_would_change(checked):
    _, found, page = checked
    assert found["machine"]["cpu"] in page and f"torch {torch.__version__}" in page
    assert all(line in page for line in found["elsewhere"]) and "AMX" in page and "GPU" in page
    assert "(accuracy)" in page and "Best dense here: " in page


def test_markdown_json_picture_and_numbers_are_in_mlflow(checked):
    from mlflow import MlflowClient

    output = checked[0]
    assert (output / "speed.png").read_bytes().startswith(b"\x89PNG")
    client = MlflowClient(f"sqlite:///{output.parent / 'store.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    assert run.info.run_name == "report · speed"
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {
        "speed.md",
        "speed.json",
        "speed.png",
    }
    assert any(name.endswith(f"{EAGER}/ms") for name in run.data.metrics)


def test_two_targets_are_two_points_and_an_unknown_task_is_said(networks, tmp_path):
    targets = [str(each) for each in networks]
    speed.time_targets(
        speed.COMMAND.parse([*targets, *QUICK, "--backends", "csr", "--output_dir", str(tmp_path)])
    )
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [round(cell["sparsity"], 1) for cell in found["cells"]] == [0.5, 0.9]
    assert [list(cell["rows"]) for cell in found["cells"]] == [[EAGER, "csr"]] * 2
    assert all(row["times_best"] for cell in found["cells"] for row in cell["rows"].values())
    page = (tmp_path / "speed.md").read_text()
    assert "Not measured, and perhaps faster than that: dense-compiled, " in page
    assert (
        "| — | 0.0e+00 |" in page and "its task is unknown; set --task and --dataset_path" in page
    )


@pytest.mark.parametrize(
    ("task", "kind", "data"),
    [("mlm", BertForMaskedLM, "text_data"), ("squad", BertForQuestionAnswering, "squad_data")],
)
def test_tokens_and_spans_are_scored_as_the_task_itself_does(
    task, kind, data, tokenizer, request, tmp_path
):
    source = load_source(str(save(tmp_path, tokenizer, 0.5, kind)))
    flags = {
        "task": task,
        "dataset_path": str(request.getfixturevalue(data)),
        "max_seq_length": 32 if task == "mlm" else 64,
    }
    given, note = accuracy.load_task(source, flags)
    kept = {"keep_head": task != "mlm", "max_train_samples": 64}
    own = resolve({**flags, **kept, "model_name_or_path": str(tmp_path)}, Arguments)
    theirs = registry.load_task(own)
    theirs.model.eval()
    batch = theirs.eval_collate([*theirs.validation])
    expected = theirs.score(theirs.rows(theirs.loss(theirs.model, batch)[1], batch))
    run = BACKENDS[EAGER].build(Setup(source.model, [], 1, tmp_path))
    assert not note and accuracy.score(source, given, {EAGER: run})[EAGER][
        "accuracy"
    ] == pytest.approx(expected)


@pytest.fixture
def squad_data(tmp_path):
    """Questions whose answer is a word of their context."""
    text = "the cat sat on a mat and saw one good dog run far from its old bad house"
    rows = [
        {
            "id": str(i),
            "context": text,
            "question": f"what {word} ?",
            "answers": {"text": [word], "answer_start": [text.index(word)]},
        }
        for i, word in enumerate(("cat", "dog", "house", "mat"))
    ]
    for split in ("train", "validation"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / f"data/{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    return tmp_path / "data"


def test_a_run_is_scored_on_its_own_task(search):
    source = load_source(str(search(max_steps=1)))
    task, note = accuracy.load_task(source, {"max_eval_samples": 5})
    assert not note and len(task.validation) == 5 and type(task.model) is Classifier
    with pytest.raises(BadInput, match="premise"):
        accuracy.load_task(source, {"task": "mnli", "dataset_path": source.run["dataset_path"]})
    source.run["dataset_path"] = "/no/longer/there"
    task, note = accuracy.load_task(source, {})
    assert task is None and "/no/longer/there" in note and "--dataset_path" in note


def test_text_fills_the_sequence_without_padding(networks, tokenizer):
    batch = text_inputs(load_source(str(networks[0])), 3, 24)
    assert {tensor.shape for tensor in batch.values()} == {(3, 24)} and batch[
        "attention_mask"
    ].all()
    assert (
        not (batch["input_ids"] == tokenizer.pad_token_id).any()
        and len(batch["input_ids"].unique(dim=0)) == 3
    )


def test_a_sparse_linear_is_faster_natively_and_a_dense_one_is_not_claimed_to_be():
    if why := kernels.unavailable():
        pytest.skip(why)
    x, said = torch.randn(256, 1024), {}
    for sparsity in (0.1, 0.99):
        network = nn.Module()
        network.config = PreTrainedConfig()
        network.layers = nn.ModuleList([nn.Linear(1024, 2048)])
        dense = network.layers[0]
        with torch.no_grad():
            dense.weight *= torch.rand_like(dense.weight) >= sparsity
        wide = modules.convert(network, "float32").layers[0]
        with measure.pinned(1), torch.no_grad():
            calls = {"dense": lambda: dense(x), "native": lambda: wide(x)}  # noqa: B023
            calls["dense twice"] = lambda: (dense(x), dense(x))  # noqa: B023
            timings, failed = measure.measure(calls, 20)
        assert not failed and verdict(ratio(timings["dense"], timings["dense twice"])) == "slower"
        said[sparsity] = ratio(timings["dense"], timings["native"])
    assert verdict(said[0.99]) == "faster"
    assert said[0.1][0] < said[0.99][0] / 2


@pytest.mark.parametrize(
    ("ours", "word"),
    [
        ((1.0, 1.0, 1.0, 1.0), "faster"),
        ((3.0, 3.0, 3.0, 3.0), "slower"),
        ((1.0, 1.9, 1.9, 4.0), "no difference shown"),
        ((2.0, 2.0, 2.0, 2.0), "no difference shown"),
    ],
)
def test_faster_is_said_only_where_both_quartiles_are_above_1(ours, word):
    assert verdict(ratio(Timing((2.0,) * 4, ()), Timing(ours, ()))) == word


def test_ratios_are_paired_by_sweep():
    reference, twice = Timing((2.0, 4.0, 20.0, 8.0), ()), Timing((1.0, 2.0, 10.0, 4.0), ())
    assert ratio(reference, twice) == (2, 2, 2)


def test_calls_are_interleaved_in_an_order_that_the_seed_fixes():
    def calls(seed):
        found = []
        measure.measure({name: lambda name=name: found.append(name) for name in "abc"}, 6, 2, seed)
        return ["".join(found[i : i + 3]) for i in range(0, 24, 3)]

    assert all(sorted(sweep) == [*"abc"] for sweep in calls(0)) and len(set(calls(0))) > 1
    assert calls(0) == calls(0) != calls(1)


def test_what_raises_is_reported_in_one_line_and_the_others_go_on():
    def broken():
        raise RuntimeError("no\nkernel")

    timings, failed = measure.measure({"good": lambda: None, "bad": broken}, 4)
    assert failed == {"bad": "RuntimeError: no"} and len(timings["good"].wall) == 4


def test_an_engine_that_fails_is_a_row_with_its_reason(networks, tmp_path, monkeypatch):
    def refuse(model):
        raise ValueError("out of\nluck")

    monkeypatch.setattr("lth_scale.shipping.speed.backends.to_csr", refuse)
    flags = ["--backends", "csr", "--output_dir", str(tmp_path)]
    speed.time_targets(speed.COMMAND.parse([str(networks[0]), *QUICK, *flags]))
    assert (
        "| csr | — | — | — | — | failed: ValueError: out of |"
        in (tmp_path / "speed.md").read_text()
    )


def test_a_backend_of_a_third_party_is_timed(networks, tmp_path, monkeypatch):
    def build(setup):
        return torch.no_grad()(lambda batch: setup.model(**batch).to_tuple())

    monkeypatch.setattr(BACKENDS, "_entries", dict(BACKENDS))
    register_backend("mine", Backend("fp32", build, lambda setup: ""))
    flags = ["--backends", "mine", "--output_dir", str(tmp_path)]
    speed.time_targets(speed.COMMAND.parse([str(networks[0]), *QUICK, *flags]))
    rows = json.loads((tmp_path / "speed.json").read_text())["cells"][0]["rows"]
    assert list(rows) == [EAGER, "mine"] and rows["mine"]["difference"] == 0


@pytest.mark.parametrize(
    ("package", "names", "said"),
    [
        ("onnxscript", ["onnxruntime-fp32", "openvino-fp32"], "lth_scale["),
        ("onnxruntime", ["onnxruntime-int8"], "lth_scale[onnx]"),
        ("openvino", ["openvino-fp32", "openvino-int8"], "lth_scale[openvino]"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    package, names, said, networks, tmp_path, monkeypatch
):
    real = importlib.import_module

    def imported(name, *rest):
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", imported)
    runs, rows = timing.build(names, Setup(load_source(str(networks[0])).model, [], 1, tmp_path))
    assert not runs and all(row["status"] == "skipped" for row in rows.values())
    assert all(package in row["why"] and said in row["why"] for row in rows.values())


def test_without_a_compiler_compiled_engines_are_skipped(networks, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/no/compiler")
    _, rows = timing.build(
        ["dense-compiled"], Setup(load_source(str(networks[0])).model, [], 1, tmp_path)
    )
    assert (
        rows["dense-compiled"]["status"] == "skipped"
        and "/no/compiler" in rows["dense-compiled"]["why"]
    )


def test_threads_and_affinity_are_restored():
    released, affinity, count = threading.Event(), os.sched_getaffinity(0), torch.get_num_threads()
    inside = []
    with pytest.raises(KeyError), measure.pinned(1):
        young = threading.Thread(target=released.wait)
        young.start()
        inside = [os.sched_getaffinity(task) for task in (0, young.native_id)]
        assert torch.get_num_threads() == 1
        raise KeyError
    assert [len(cores) for cores in inside] == [1, 1]
    assert os.sched_getaffinity(0) == affinity == os.sched_getaffinity(young.native_id)
    assert torch.get_num_threads() == count
    released.set()
    young.join()


@pytest.mark.parametrize(
    ("points", "found"),
    [
        ({50.0: 0.5, 70.0: 0.9, 90.0: 1.1}, 80),
        ({50.0: 1.2, 90.0: 1.5}, None),
        ({50.0: 0.2, 90.0: 0.9}, None),
        ({70.0: 1.3}, None),
        ({50.0: 0.5, 70.0: 1.5, 80.0: 0.5, 90.0: 1.5}, 85),
        ({50.0: 0.5, 70.0: 1.5, 90.0: 0.5}, None),
    ],
)
def test_break_even_is_where_the_speed_up_comes_to_stay_above_1(points, found):
    even = report.break_even(
        {sparsity: (median, median, median) for sparsity, median in points.items()}
    )
    assert even == (found if found is None else pytest.approx(found))


def test_notes_change_with_the_machine(tmp_path, monkeypatch):
    cell = {
        "target": "a",
        "sparsity": 0.5,
        "batch_size": 1,
        "sequence_length": 8,
        "threads": 1,
        "best": {},
        "rows": {},
        "device": "cpu",
    }
    here = report.machine()
    said = []
    for has in (["avx512f", "amx_tile"], ["avx2"]):
        monkeypatch.setattr(report, "machine", lambda has=has: {**here, "instructions": has})
        report.write(tmp_path, [cell], [], {})
        said.append(json.loads((tmp_path / "speed.json").read_text())["elsewhere"])
    assert (
        "This CPU has AMX" in said[0][0]
        and "moves up" in said[1][0]
        and "has no AVX-512" in said[1][1]
    )


def test_help_names_every_flag_and_no_torch_is_needed_to_refuse(command):
    said = command("lth_scale.speed", "--help").stdout
    for name in speed.Speed.__dataclass_fields__.keys() - {"targets"}:
        assert f"--{name}" in said
    assert all(name in said for name in BACKENDS)
    started = command("lth_scale.speed", "/no/such/run")
    assert started.returncode == 2 and started.stderr.count("\n") == 1

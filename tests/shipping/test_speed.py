"""The speed check: which backends run, what is claimed of them, what is restored and written."""

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
from lth_scale.shipping.speed import accuracy, report, timing
from lth_scale.shipping.speed.accuracy import text_inputs
from lth_scale.shipping.speed.flags import FILES
from lth_scale.shipping.speed.registry import BACKENDS, EAGER, Backend, Setup, register_backend
from lth_scale.shipping.speed.timing import Timing, measure, pinned, ratio, verdict
from lth_scale.tasks import registry

QUICK = ["--repeats", "4", "--warmup", "1", "--batch_size", "2", "--sequence_length", "16"]
UNTRACKED = [*QUICK, "--report_to", "none"]


def check(*argv):
    """Run the speed check; return its directory, speed.json and speed.md."""
    output = speed.time_targets(speed.COMMAND.parse([*map(str, argv)])[1])
    return (
        output,
        json.loads((output / "speed.json").read_text()),
        (output / "speed.md").read_text(),
    )


def save(directory, tokenizer, sparsity, kind=Classifier):
    """Save a tiny network with about this sparsity."""
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
    directory = tmp_path_factory.mktemp("networks")
    return [save(directory / f"tiny{percent}", tokenizer, percent / 100) for percent in (50, 90)]


@pytest.fixture(scope="module")
def checked(networks, sst2_data, tmp_path_factory):
    """The check of one network, scored and logged to MLflow: directory, JSON, Markdown."""
    output = tmp_path_factory.mktemp("checked") / "speed"
    task = ("--task", "sst2", "--dataset_path", sst2_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{output.parent / 'store.db'}")
        return check(networks[1], *QUICK, *task, "--output_dir", output)


@pytest.fixture(scope="module")
def timed(checked):
    """The rows of the backends that were timed."""
    (cell,) = checked[1]["cells"]
    return {name: row for name, row in cell["rows"].items() if row["status"] == "timed"}


def test_every_backend_is_timed_or_skipped_with_its_reason(checked, timed):
    _, result, page = checked
    rows = result["cells"][0]["rows"]
    assert list(rows) == list(BACKENDS) and {EAGER, "csr"} <= timed.keys()
    for name, row in rows.items():
        assert row["status"] in ("timed", "skipped"), (name, row["why"])
        assert (row["status"] == "timed") != bool(row["why"])
        assert f"| {name} |" in page and row["why"] in page
    assert "--device cuda" in rows["dense-fp16"]["why"] and "--device cuda" in rows["2:4"]["why"]


def test_every_backend_gives_the_logits_and_the_score_of_the_dense_network(timed):
    eager = timed[EAGER]
    for name, row in timed.items():
        assert row["difference"] < {"fp32": 1e-4, "bf16": 0.1, "int8": 0.5}[row["precision"]], name
        assert abs(row["accuracy"]["loss"] - eager["accuracy"]["loss"]) < 0.1, name
        if row["precision"] == "fp32":
            assert row["accuracy"]["accuracy"] == eager["accuracy"]["accuracy"], name
    assert eager["difference"] == 0


def test_ratios_are_against_eager_and_against_the_best_dense(checked, timed):
    _, result, page = checked
    (cell,) = result["cells"]
    dense = {name: row["ms"][0] for name, row in timed.items() if not row["sparse"]}
    assert cell["best"]["any"] == min(dense, key=dense.__getitem__)
    assert timed[cell["best"]["any"]]["verdict_best"] == "the best dense"
    assert timed[EAGER]["times_eager"] == [1, 1, 1]
    for row in timed.values():
        assert row["times_best"][1] <= row["times_best"][0] <= row["times_best"][2]
        assert len(row["samples_ms"]) == 4 and row["cpu_ms"][0] > 0
    first_cells = [line.split(" | ")[0][2:] for line in page.splitlines() if line.startswith("| ")]
    by_speed = sorted(timed, key=lambda name: timed[name]["ms"][0])
    assert [name for name in first_cells if name in timed] == by_speed


def test_the_page_names_the_machine_and_what_another_would_change(checked):
    _, result, page = checked
    assert result["machine"]["cpu"] in page and f"torch {torch.__version__}" in page
    assert all(line in page for line in result["elsewhere"]) and "AMX" in page and "GPU" in page
    assert "(accuracy)" in page and "Best dense here: " in page


def test_page_json_picture_and_metrics_are_in_mlflow(checked):
    from mlflow import MlflowClient

    output = checked[0]
    assert (output / "speed.png").read_bytes().startswith(b"\x89PNG")
    client = MlflowClient(f"sqlite:///{output.parent / 'store.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    assert run.info.run_name == "report · speed"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {*FILES}
    assert any(name.endswith(f"{EAGER}/ms") for name in run.data.metrics)


def test_two_targets_are_two_points_and_an_unknown_task_is_noted(networks, tmp_path):
    _, result, page = check(*networks, *UNTRACKED, "--backends", "csr", "--output_dir", tmp_path)
    assert [round(cell["sparsity"], 1) for cell in result["cells"]] == [0.5, 0.9]
    assert [list(cell["rows"]) for cell in result["cells"]] == [[EAGER, "csr"]] * 2
    assert all(row["times_best"] for cell in result["cells"] for row in cell["rows"].values())
    assert "Not measured, and perhaps faster than that: dense-compiled, " in page
    assert "| — | 0.0e+00 |" in page
    assert "its task is unknown; set --task and --dataset_path" in page


@pytest.mark.parametrize(
    ("task", "kind", "data"),
    [("mlm", BertForMaskedLM, "text_data"), ("squad", BertForQuestionAnswering, "squad_data")],
)
def test_mlm_and_squad_are_scored_as_by_the_task_itself(
    task, kind, data, tokenizer, request, tmp_path
):
    source = load_source(str(save(tmp_path, tokenizer, 0.5, kind)))
    flags = {"task": task, "dataset_path": str(request.getfixturevalue(data))}
    flags["max_seq_length"] = 32 if task == "mlm" else 64
    loaded, note = accuracy.load_task(source, flags)
    kept = {"keep_head": task != "mlm", "max_train_samples": 64}
    own = registry.load_task(
        resolve({**flags, **kept, "model_name_or_path": str(tmp_path)}, Arguments)
    )
    own.model.eval()
    batch = own.eval_collate([*own.validation])
    expected = own.score(own.rows(own.loss(own.model, batch)[1], batch))
    backend = BACKENDS[EAGER].build(Setup(source.model, [], 1, tmp_path))
    assert not note and accuracy.score(source, loaded, backend) == pytest.approx(expected)


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
    directory = tmp_path / "data"
    directory.mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps(row) + "\n" for row in rows]
        (directory / f"{split}.jsonl").write_text("".join(lines))
    return directory


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
    assert {tensor.shape for tensor in batch.values()} == {(3, 24)}
    assert batch["attention_mask"].all() and len(batch["input_ids"].unique(dim=0)) == 3
    assert not (batch["input_ids"] == tokenizer.pad_token_id).any()


def test_a_sparse_linear_is_faster_natively_and_a_dense_one_is_not_claimed_to_be():
    if why := kernels.unavailable():
        pytest.skip(why)
    x, ratios = torch.randn(256, 1024), {}
    for sparsity in (0.1, 0.99):
        network = nn.Module()
        network.config = PreTrainedConfig()
        network.layers = nn.ModuleList([nn.Linear(1024, 2048)])
        dense = network.layers[0]
        with torch.no_grad():
            dense.weight *= torch.rand_like(dense.weight) >= sparsity
        native = modules.convert(network, "float32").layers[0]
        with pinned(1), torch.no_grad():
            calls = {"dense": lambda: dense(x), "native": lambda: native(x)}  # noqa: B023
            calls["dense twice"] = lambda: (dense(x), dense(x))  # noqa: B023
            timings, failed = measure(calls, 20)
        assert not failed and verdict(ratio(timings["dense"], timings["dense twice"])) == "slower"
        ratios[sparsity] = ratio(timings["dense"], timings["native"])
    assert verdict(ratios[0.99]) == "faster"
    assert ratios[0.1][0] < ratios[0.99][0] / 2


@pytest.mark.parametrize(
    ("ours", "word"),
    [
        ((1.0, 1.0, 1.0, 1.0), "faster"),
        ((3.0, 3.0, 3.0, 3.0), "slower"),
        ((1.0, 1.9, 1.9, 4.0), "no difference shown"),
        ((2.0, 2.0, 2.0, 2.0), "no difference shown"),
    ],
)
def test_faster_means_that_both_quartiles_are_above_1(ours, word):
    assert verdict(ratio(Timing((2.0,) * 4, ()), Timing(ours, ()))) == word


def test_ratios_are_paired_by_sweep():
    reference, twice = Timing((2.0, 4.0, 20.0, 8.0), ()), Timing((1.0, 2.0, 10.0, 4.0), ())
    assert ratio(reference, twice) == (2, 2, 2)


def test_calls_are_interleaved_in_an_order_that_the_seed_fixes():
    def calls(seed):
        called = []
        measure({name: lambda name=name: called.append(name) for name in "abc"}, 6, 2, seed)
        return ["".join(called[i : i + 3]) for i in range(0, 24, 3)]

    assert all(sorted(sweep) == [*"abc"] for sweep in calls(0)) and len(set(calls(0))) > 1
    assert calls(0) == calls(0) != calls(1)


def test_a_callable_that_raises_is_reported_in_one_line_and_the_others_are_timed():
    def broken():
        raise RuntimeError("no\nkernel")

    timings, failed = measure({"good": lambda: None, "bad": broken}, 4)
    assert failed == {"bad": "RuntimeError: no"} and len(timings["good"].wall) == 4


def test_a_backend_that_fails_is_a_row_with_its_reason(networks, tmp_path, monkeypatch):
    def refuse(model):
        raise ValueError("out of\nluck")

    monkeypatch.setattr("lth_scale.shipping.speed.backends.to_csr", refuse)
    page = check(networks[0], *UNTRACKED, "--backends", "csr", "--output_dir", tmp_path)[2]
    assert "| csr | — | — | — | — | failed: ValueError: out of |" in page


def test_a_backend_of_a_third_party_is_timed(networks, tmp_path, monkeypatch):
    def build(setup):
        return torch.no_grad()(lambda batch: setup.model(**batch).to_tuple())

    monkeypatch.setattr(BACKENDS, "_entries", dict(BACKENDS))
    register_backend("mine", Backend("fp32", build, lambda setup: ""))
    result = check(networks[0], *UNTRACKED, "--backends", "mine", "--output_dir", tmp_path)[1]
    rows = result["cells"][0]["rows"]
    assert list(rows) == [EAGER, "mine"] and rows["mine"]["difference"] == 0


@pytest.mark.parametrize(
    ("package", "names", "extra"),
    [
        ("onnxscript", ["onnxruntime-fp32", "openvino-fp32"], "lth_scale["),
        ("onnxruntime", ["onnxruntime-int8"], "lth_scale[onnx]"),
        ("openvino", ["openvino-fp32", "openvino-int8"], "lth_scale[openvino]"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    package, names, extra, networks, tmp_path, monkeypatch
):
    real = importlib.import_module

    def imported(name, *rest):
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", imported)
    runs, rows = timing.build(names, Setup(load_source(str(networks[0])).model, [], 1, tmp_path))
    assert not runs and all(row["status"] == "skipped" for row in rows.values())
    assert all(package in row["why"] and extra in row["why"] for row in rows.values())


def test_compiled_backends_are_skipped_without_a_compiler(networks, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/no/compiler")
    setup = Setup(load_source(str(networks[0])).model, [], 1, tmp_path)
    row = timing.build(["dense-compiled"], setup)[1]["dense-compiled"]
    assert row["status"] == "skipped" and "/no/compiler" in row["why"]


def test_threads_and_affinity_are_restored():
    released, affinity, count = threading.Event(), os.sched_getaffinity(0), torch.get_num_threads()
    inside = []
    with pytest.raises(KeyError), pinned(1):
        thread = threading.Thread(target=released.wait)
        thread.start()
        inside = [os.sched_getaffinity(task) for task in (0, thread.native_id)]
        assert torch.get_num_threads() == 1
        raise KeyError
    assert [len(cores) for cores in inside] == [1, 1]
    assert os.sched_getaffinity(0) == affinity == os.sched_getaffinity(thread.native_id)
    assert torch.get_num_threads() == count
    released.set()
    thread.join()


@pytest.mark.parametrize(
    ("points", "crossing"),
    [
        ({50.0: 0.5, 70.0: 0.9, 90.0: 1.1}, 80),
        ({50.0: 1.2, 90.0: 1.5}, None),
        ({50.0: 0.2, 90.0: 0.9}, None),
        ({70.0: 1.3}, None),
        ({50.0: 0.5, 70.0: 1.5, 80.0: 0.5, 90.0: 1.5}, 85),
        ({50.0: 0.5, 70.0: 1.5, 90.0: 0.5}, None),
    ],
)
def test_break_even_is_the_sparsity_above_which_the_speed_up_stays_above_1(points, crossing):
    curve = {sparsity: (median, median, median) for sparsity, median in points.items()}
    assert report.break_even(curve) == (crossing and pytest.approx(crossing))


def test_notes_change_with_the_machine(tmp_path, monkeypatch):
    cell = {"target": "a", "sparsity": 0.5, "batch_size": 1, "sequence_length": 8, "threads": 1}
    cell |= {"best": {}, "rows": {}, "device": "cpu"}
    here, notes = report.machine(), []
    for instructions in (["avx512f", "amx_tile"], ["avx2"]):
        machine = {**here, "instructions": instructions}
        monkeypatch.setattr(report, "machine", lambda machine=machine: machine)
        report.write(tmp_path, [cell], [], {})
        notes.append(json.loads((tmp_path / "speed.json").read_text())["elsewhere"])
    assert "This CPU has AMX" in notes[0][0]
    assert "moves up" in notes[1][0] and "has no AVX-512" in notes[1][1]


def test_help_names_every_flag_and_bad_input_needs_no_torch(command):
    text = command("lth_scale.speed", "--help").stdout
    for name in speed.Speed.__dataclass_fields__.keys() - {"targets"}:
        assert f"--{name}" in text
    assert all(name in text for name in BACKENDS)
    refused = command("lth_scale.speed", "/no/such/run")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1

"""Algorithm 1 on a real (tiny) network, observed from outside."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    set_seed,
)

from lth_scale import Ticket
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.pruning.prunable_set import base_digest, prunable
from lth_scale.pruning.registries import CONTROLS
from lth_scale.tasks.registry import TASKS
from lth_scale.tracking.stages import sparsity_beside
from lth_scale.training import loop, networks


@pytest.fixture
def starts(monkeypatch):
    """What each round trains from: a copy of every parameter as training is entered."""
    seen = []
    train = loop.train

    def spy(net, until, rate, on_step):
        seen.append(
            {
                "step": net.step,
                "weights": {
                    name: weight.detach().clone()
                    for name, weight in net.task.model.named_parameters()
                },
                "optimizer": len(net.engine.optimizer.state),
                "rng": torch.get_rng_state(),
                "rate": rate(net.step),
                "rows": net.batches[
                    (net.data_offset + net.step) * net.args.gradient_accumulation_steps
                ],
            }
        )
        loss = train(net, until, rate, on_step)
        seen[-1]["trained"] = net.engine.full_weights()
        return loss

    monkeypatch.setattr(loop, "train", spy)
    return seen


def theta_zero(task: str, model: str, seed: int = 42):
    """θ₀ and γ₀, loaded by plain transformers."""
    set_seed(seed)
    auto = AutoModelForMaskedLM if task == "mlm" else AutoModelForSequenceClassification
    return dict(auto.from_pretrained(model, dtype=torch.float32).named_parameters())


def assert_starts_at(start: dict, theta: dict, out, k: int) -> None:
    """Prunable weights are m ⊙ θ and all others θ, bit for bit."""
    masks = Ticket.load(out / f"rounds/{k:02d}/ticket.safetensors").masks
    prefix = next(
        name for name in start["weights"] if name.endswith(next(iter(masks)))
    ).removesuffix(next(iter(masks)))
    masks = {prefix + name: mask for name, mask in masks.items()}
    for name, weight in start["weights"].items():
        expected = theta[name] * masks[name] if name in masks else theta[name]
        assert torch.equal(weight, expected), (k, name)


@pytest.mark.parametrize("task", ["sst2", "mlm"])
def test_every_round_starts_from_the_masked_pretrained_weights_exactly(
    task, search, starts, tiny_bert, text_data, sst2_data
):
    """The official code fails this for MLM: its snapshot aliases the live weights."""
    out = search(task=task, dataset_path=text_data if task == "mlm" else sst2_data)
    theta = theta_zero(task, tiny_bert)
    rounds = [start for start in starts if start["step"] == 0][
        1:
    ]  # the first call trains zero steps, to θ₀
    assert len(rounds) == 4
    for k, start in enumerate(rounds):
        assert_starts_at(start, theta, out, k)
    moved = [not torch.equal(starts[1]["trained"][name], theta[name]) for name in theta]
    assert (
        sum(moved) > len(moved) * 0.9
    )  # training does move them, so equality above means something


def test_rewinding_to_step_i_restores_theta_i_and_the_head(search, starts):
    out = search(rewind_step=2)
    theta = load_file(out / "theta.safetensors")
    assert (
        starts[0]["step"] == 0 and starts[1]["step"] == 2
    )  # the dense round: to θᵢ, and on from it
    for name, weight in theta.items():
        assert torch.equal(weight, starts[0]["trained"][name])
    for k, start in enumerate(starts[2:], 1):
        assert start["step"] == 2
        assert_starts_at(start, theta, out, k)
    assert any("classifier" in name for name in theta)
    assert [row["steps"] for row in json.loads((out / "results.json").read_text())] == [4, 2, 2, 2]


def test_a_fraction_as_rewind_step_is_a_fraction_of_a_round(search, starts):
    search(rewind_step="0.25", max_steps=8)
    assert [start["step"] for start in starts] == [0, 2, 2, 2, 2]


def test_rewinding_resets_optimizer_schedule_generators_and_data(search, starts):
    search()
    first, *rounds = starts[1:]
    for start in rounds:
        assert start["optimizer"] == 0
        assert start["rate"] == first["rate"]
        assert torch.equal(start["rng"], first["rng"])
        assert all(torch.equal(start["rows"][name], first["rows"][name]) for name in first["rows"])


def test_a_rewound_round_under_the_same_mask_repeats_the_dense_one(search, tiny_bert, tmp_path):
    """With nothing pruned, rewinding must give the dense round again, to the last bit."""
    from lth_scale.config.arguments import Arguments
    from lth_scale.config.resolution import resolve
    from lth_scale.tracking.run_directory import RunDirectory
    from lth_scale.training.search import Search
    from lth_scale.training.starting_point import initial_ticket

    given = dict(
        task="sst2",
        preset="demo",
        max_steps=3,
        max_train_samples=64,
        max_eval_samples=8,
        report_to="none",
    )
    args: Arguments = resolve(
        {**given, "model_name_or_path": str(tiny_bert), "output_dir": str(tmp_path / "o")}
    )
    found = Search.open(args, RunDirectory.open(args))
    trained = []
    theta = found.net.engine.full_weights()
    for _ in range(2):
        networks.restart(found.net, theta, initial_ticket(found.net).masks, 0, args.seed)
        loop.train(found.net, 3, loop.learning_rates(args, 3), lambda step, loss: None)
        trained.append(found.net.engine.full_weights())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in theta)


@pytest.mark.parametrize("rewind", ["none", "lr"])
def test_without_rewinding_a_round_continues_from_the_previous_weights(rewind, search, starts):
    out = search(rewind=rewind)
    rounds = starts[1:]
    for k in range(1, len(rounds)):
        assert_starts_at(rounds[k], rounds[k - 1]["trained"], out, k)
        assert not torch.equal(rounds[k]["rng"], rounds[0]["rng"])
    rates = [start["rate"] for start in rounds]
    if rewind == "lr":
        assert rates == [0.01] * 4
    else:  # one decay over all 16 steps
        assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_lr_span_all_rounds_is_the_schedule_of_the_official_code(search, starts):
    search(lr_span="all_rounds")
    assert [start["rate"] for start in starts[1:]] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize("schedule", ["linear", "geometric", "one_shot", "cubic"])
@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_counts_are_exact_and_masks_nested(schedule, scope, search):
    out = search(schedule=schedule, scope=scope, target_sparsity=0.37, prune_rate=0.15, max_steps=1)
    tickets = [Ticket.load(path) for path in sorted(out.glob("rounds/*/ticket.safetensors"))]
    rows = json.loads((out / "results.json").read_text())
    assert len(tickets) == len(rows) >= 2
    assert tickets[0].pruned == 0
    assert tickets[-1].pruned == round(0.37 * tickets[-1].prunable)
    for before, after, row in zip(tickets, tickets[1:], rows[1:], strict=False):
        assert row["pruned"] == after.pruned > before.pruned
        assert all((before.masks[name] | ~after.masks[name]).all() for name in after.masks)
    if schedule == "linear":
        assert [t.pruned for t in tickets] == [
            round(s * tickets[0].prunable) for s in (0, 0.15, 0.3, 0.37)
        ]


def test_max_steps_0_gives_the_one_shot_ticket_of_the_pretrained_weights(search, tiny_bert):
    out = search(max_steps=0, target_sparsity=0.45)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, dtype=torch.float32)
    set_seed(42)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, dtype=torch.float32)
    ticket = Ticket.load(out / "ticket.safetensors")
    weights = [prunable(model)[name] for name in ticket.masks]  # without the pooler, which is fresh
    flat = torch.cat([weight.detach().flatten() for weight in weights]).abs()
    pruned = torch.zeros(len(flat), dtype=torch.bool)
    pruned[flat.sort(stable=True).indices[: round(0.45 * len(flat))]] = True
    assert torch.equal(torch.cat([mask.flatten() for mask in ticket.masks.values()]), ~pruned)
    assert all(row["steps"] == 0 for row in json.loads((out / "results.json").read_text()))


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_a_nearly_empty_matrix_is_reported_with_its_round_and_a_remedy(
    scope, search, tiny_bert, tmp_path, caplog
):
    """As with an encoder whose pooler was never trained and is small."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(1e-3)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "model")
    out = search(
        model_name_or_path=str(tmp_path / "model"),
        scope=scope,
        target_sparsity=0.4,
        prune_rate=0.2,
        max_steps=0,
    )
    messages = [record.getMessage() for record in caplog.records]
    said = [line for line in messages if line.startswith("round ") and "keeps" in line]
    assert len(said) == (2 if scope == "global" else 0)
    for k, line in enumerate(said, 1):
        kept = int(
            Ticket.load(out / f"rounds/{k:02d}/ticket.safetensors")
            .masks["pooler.dense.weight"]
            .sum()
        )
        assert line.startswith(
            f"round {k:02d}: pooler.dense.weight keeps {kept} weights, fewer than it has outputs; "
        )
        assert kept < 16
        assert "--scope layerwise" in line


@pytest.fixture
def small_query(tiny_bert, tmp_path):
    """The tiny model with one matrix that a global threshold empties first."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.query.weight.mul_(1e-3)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


QUERY = "encoder.layer.0.attention.self.query.weight"


def test_a_nearly_empty_matrix_is_in_the_row_the_table_and_mlflow_of_every_command(
    small_query, search, transfer, tmp_path, capsys, caplog, monkeypatch
):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    flags = {"model_name_or_path": small_query, "max_steps": 0, "report_to": "mlflow"}
    out = search(**flags, target_sparsity=0.2, control="one_shot")
    words = [f"{QUERY} keeps 0 weights, fewer than it has outputs"] * 2
    rows = json.loads((out / "results.json").read_text())
    assert [row.get("starved") for row in rows] == [None, {QUERY: 0}, {QUERY: 0}]
    controls = json.loads((out / "controls.json").read_text())
    assert [row["starved"] for row in controls] == [{QUERY: 0}] * 2
    table = capsys.readouterr().out
    assert f"- round 01: {words[0]}" in table and f"- one_shot round 02: {words[1]}" in table
    said = [
        record.getMessage()
        for record in caplog.records
        if "fewer than it has outputs" in record.getMessage()
    ]
    assert [line.split(":")[0] for line in said] == [
        "round 01",
        "round 02",
        "one_shot 01",
        "one_shot 02",
    ]
    caplog.clear()
    moved = transfer(1, 2, **flags, ticket=out)
    assert [row["starved"] for row in json.loads((moved / "results.json").read_text())] == [
        {QUERY: 0}
    ] * 2
    assert f"- seed 02: {words[0]}" in capsys.readouterr().out
    assert sum("fewer than it has outputs" in record.getMessage() for record in caplog.records) == 2
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    tagged = {run.info.run_name.split(" ·")[0]: run.data.tags.get("starved") for run in runs}
    assert tagged["round 00"] is None and tagged["round 01"] == tagged["one_shot 02"] == words[0]
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 3 and all(words[0] in run.data.tags["starved"] for run in parents)
    assert all("Nearly empty matrices" in run.data.tags["mlflow.note.content"] for run in parents)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_the_trained_network_has_exact_zeros_and_loads_with_from_pretrained(optim, search):
    momentum = {"optim_args": "momentum=0.9"} if optim == "sgd" else {}
    out = search(
        optim=optim, weight_decay=0.1, gradient_accumulation_steps=2, bf16=True, **momentum
    )
    model = AutoModelForSequenceClassification.from_pretrained(out / "rounds/03/model")
    ticket = Ticket.load(out / "ticket.safetensors")
    for name, mask in ticket.masks.items():
        weight = prunable(model)[name]
        assert not weight[~mask].any() and (weight[mask] != 0).float().mean() > 0.99


def test_the_output_directory_has_the_documented_layout(search):
    out = search(control="random_mask")
    results = json.loads((out / "results.json").read_text())
    assert [row["round"] for row in results] == [0, 1, 2, 3]
    for k, row in enumerate(results):
        directory = out / f"rounds/{k:02d}"
        assert {"ticket.safetensors", "metrics.json", "complete"} <= {
            path.name for path in directory.iterdir()
        }
        assert json.loads((directory / "metrics.json").read_text()) == row
        assert {
            "round",
            "sparsity",
            "pruned",
            "prunable",
            "threshold",
            "steps",
            "eval",
            "seconds",
            "peak_memory",
        } <= set(row)
        assert row["sparsity"] == row["pruned"] / row["prunable"]
        assert (
            math.isfinite(row["eval"]["accuracy"]) and row["peak_memory"] > 0 and row["seconds"] > 0
        )
    arguments = json.loads((out / "arguments.json").read_text())
    assert arguments["task"] == "sst2" and arguments["versions"]["torch"] == torch.__version__
    assert "git_commit" in arguments
    last = Ticket.load(out / "ticket.safetensors")
    assert last.masks.keys() == Ticket.load(out / "rounds/03/ticket.safetensors").masks.keys()
    assert (
        last.pruned == results[-1]["pruned"]
        and last.task == "sst2"
        and len(last.theta_sha256) == 64
    )
    assert not list(out.rglob("*.tmp"))


def test_the_threshold_is_the_largest_pruned_magnitude(search, starts):
    out = search()
    results = json.loads((out / "results.json").read_text())
    for k in (1, 2, 3):
        before, after = (
            Ticket.load(out / f"rounds/{j:02d}/ticket.safetensors").masks for j in (k - 1, k)
        )
        trained = starts[k]["trained"]
        cut = [trained[f"bert.{name}"][before[name] & ~after[name]] for name in after]
        assert results[k]["threshold"] == torch.cat(cut).abs().max().item()


def test_the_control_has_the_sparsity_of_the_ticket_and_another_mask(search, starts):
    out = search(control="random_mask")
    for k in (2, 3):
        found = Ticket.load(out / f"rounds/{k:02d}/ticket.safetensors")
        random = Ticket.load(out / f"controls/random_mask/{k:02d}/ticket.safetensors")
        assert random.pruned == found.pruned
        shares = list(random.layer_sparsity().values())
        assert max(abs(share - found.sparsity) for share in shares) < 0.15
        assert found.overlap(random)["all"] == pytest.approx(1 - found.sparsity, abs=0.05)
    assert not (out / "controls/random_mask/01").exists()


def test_a_search_can_start_from_a_ticket(search, tmp_path):
    first = search(target_sparsity=0.2)
    out = search(
        ticket=first / "ticket.safetensors", output_dir=tmp_path / "second", target_sparsity=0.4
    )
    start, end = Ticket.load(first / "ticket.safetensors"), Ticket.load(out / "ticket.safetensors")
    rows = json.loads((out / "results.json").read_text())
    assert [round(row["sparsity"], 2) for row in rows] == [0.2, 0.3, 0.4]
    assert all((start.masks[name] | ~mask).all() for name, mask in end.masks.items())


def test_a_ticket_of_other_weights_is_refused_unless_allowed(search, other_bert, tmp_path, caplog):
    first = search(max_steps=0, target_sparsity=0.2, control="random_mask")
    bases = {Ticket.load(path).base_sha256 for path in first.rglob("ticket.safetensors")}
    assert bases == {
        base_digest(
            AutoModelForMaskedLM.from_pretrained(
                json.loads((first / "arguments.json").read_text())["model_name_or_path"]
            )
        )
    }
    given = {
        "ticket": first,
        "model_name_or_path": other_bert,
        "max_steps": 0,
        "output_dir": tmp_path / "second",
    }
    with pytest.raises(
        BadInput,
        match=rf"--ticket {first}/ticket.safetensors: comes from other weights, "
        rf"base_sha256 {min(bases)[:12]}…",
    ):
        search(**given)
    assert not (tmp_path / "second").exists()
    out = search(**given, allow_other_weights=True)
    rows = json.loads((out / "results.json").read_text())
    assert all("--allow_other_weights" in row["note"] for row in rows)
    assert [record.message.startswith("--ticket") for record in caplog.records].count(True) == 1
    theirs = {Ticket.load(path).base_sha256 for path in out.rglob("ticket.safetensors")}
    assert len(theirs) == 1 and theirs != bases


def test_a_dense_network_of_other_weights_is_refused(search, other_bert, tmp_path):
    dense = search(target_sparsity=0.1, output_dir=tmp_path / "dense")
    path = dense / "arguments.json"
    written = json.loads(path.read_text())
    as_of_hub_model = {**written, "digests": {}, "model_name_or_path": str(other_bert)}
    path.write_text(json.dumps(as_of_hub_model))
    with pytest.raises(
        BadInput,
        match=r"--dense \S+: trained differently \(the sha256 of the base model's weights was",
    ):
        search(dense=dense, model_name_or_path=other_bert)


def test_a_finished_search_is_printed_and_not_trained_again(search, starts, capsys):
    search()
    shown = capsys.readouterr().out
    calls = len(starts)
    search()
    assert len(starts) == calls
    assert capsys.readouterr().out == shown
    assert "| round | sparsity |" in shown


def test_a_resumed_search_ends_like_an_uninterrupted_one(search, starts, tmp_path, monkeypatch):
    whole = search(output_dir=tmp_path / "whole")

    class Stopped(Exception):
        pass

    evaluate = loop.evaluate
    monkeypatch.setattr(
        loop,
        "evaluate",
        lambda *a: (_ for _ in ()).throw(Stopped) if len(starts) == 9 else evaluate(*a),
    )
    with pytest.raises(Stopped):
        search(output_dir=tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("rounds/*/complete"))) == 2
    monkeypatch.setattr(loop, "evaluate", evaluate)
    parts = search(output_dir=tmp_path / "parts")
    assert (
        len(starts) == (2 + 3) + (2 + 2) + 2
    )  # whole; then rounds 0, 1 and a 2 that was lost; then 2 and 3
    assert (parts / "ticket.safetensors").read_bytes() == (
        whole / "ticket.safetensors"
    ).read_bytes()


def test_a_search_that_stopped_before_its_summary_prints_it_when_resumed(search, monkeypatch):
    from lth_scale.science import figures

    draw = figures.draw_search

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "draw_search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(control="random_mask")
    drawn = []

    def watched(record, layers):
        drawn.append(layers)
        return draw(record, layers)

    monkeypatch.setattr(figures, "draw_search", watched)
    out = search(control="random_mask")
    assert (out / "complete").exists()
    assert drawn == [
        Ticket.load(out / "ticket.safetensors").layer_sparsity()
    ]  # the ticket's, not the control's


def test_a_figure_that_fails_does_not_fail_the_search(search, monkeypatch):
    from lth_scale.science import figures

    monkeypatch.setattr(figures, "render", lambda figure, format: 1 / 0)
    out = search()
    assert (
        (out / "complete").exists()
        and (out / "results.json").exists()
        and not (out / "figures").exists()
    )


@pytest.mark.parametrize("rewind_step", ["1", "0.5"])
def test_a_search_with_dense_finds_the_same_ticket_as_without(
    rewind_step, search, tmp_path, starts
):
    dense = search(output_dir=tmp_path / "dense", target_sparsity=0.1, keep_theta="1,0.5")
    alone = search(output_dir=tmp_path / "alone", rewind_step=rewind_step)
    starts.clear()
    shared = search(output_dir=tmp_path / "shared", rewind_step=rewind_step, dense=dense)
    assert len(starts) == 3  # no training of round 0
    for name in ("theta", "rounds/01/ticket", "ticket"):
        found, expected = (load_file(out / f"{name}.safetensors") for out in (shared, alone))
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    digests = [Ticket.load(out / "ticket.safetensors").theta_sha256 for out in (shared, alone)]
    assert digests[0] == digests[1]
    rows = [json.loads((out / "results.json").read_text()) for out in (shared, alone)]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["eval"] == theirs["eval"] and ours["steps"] == theirs["steps"]


def test_dense_is_refused_if_trained_differently_or_without_the_needed_weights(search, tmp_path):
    dense = search(output_dir=tmp_path / "dense", target_sparsity=0.1, keep_theta="1")
    for flags, said in (
        ({"learning_rate": 0.02}, "--learning_rate was 0.01, is 0.02"),
        ({"seed": 1}, "--seed was 42, is 1"),
        ({"rewind_step": "2"}, "--keep_theta 2"),
    ):
        with pytest.raises(BadInput, match=said):
            search(output_dir=tmp_path / "o", dense=dense, **flags)
        assert not (tmp_path / "o").exists()


def test_a_quick_look_is_marked_in_every_output(search, capsys, tmp_path):
    from mlflow import MlflowClient

    out = search(
        preset="quick",
        max_train_samples=None,
        max_eval_samples=None,
        report_to="mlflow",
        target_sparsity=0.2,
    )
    assert "a quick look" in capsys.readouterr().out
    assert all(
        "a quick look" in row["note"] for row in json.loads((out / "results.json").read_text())
    )
    assert Ticket.load(out / "ticket.safetensors").arguments["preset"] == "quick"
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    assert all("a quick look" in run.data.tags["note"] for run in runs)
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert (
        "quick look" in parent.info.run_name
        and "a quick look" in parent.data.tags["mlflow.note.content"]
    )


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_quick_preset_on_real_data_with_a_small_encoder(task):
    own = ["--dataset_name", "a/b"] if TASKS[task].is_of_own_data else []
    args = parse(["--task", task, "--preset", "quick", *own])
    assert (
        args.dataset_path is None
        and args.max_train_samples <= 2000
        and "L-4" in args.model_name_or_path
    )
    assert args.note and "quick" in args.output_dir


@pytest.mark.parametrize("control", [name for name in CONTROLS if name != "none"])
def test_a_search_trains_any_control_for_its_last_tickets(control, search):
    out = search(control=control, max_steps=1)
    rows = json.loads((out / "controls.json").read_text())
    assert [round(sparsity_beside(row), 1) for row in rows] == [0.2, 0.3]
    assert (out / f"controls/{control}/03/complete").is_file()


def test_a_search_without_deepspeed_does_not_import_it_to_save_its_network(search, monkeypatch):
    """save_pretrained of transformers lets Accelerate unwrap the model, which imports it."""

    def imports(*_):
        raise AssertionError("DeepSpeed would be imported")

    monkeypatch.setattr("accelerate.utils.other.is_deepspeed_available", imports)
    assert (
        search(max_steps=1, target_sparsity=0.1) / "rounds/01/model/model.safetensors"
    ).is_file()

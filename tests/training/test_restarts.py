"""Dense networks with the budget of a search: longer training, and the best of several."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from lth_scale import Ticket, imp
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.tracking import predictions, trackers
from lth_scale.tracking.trackers import Listener, Tracker
from lth_scale.training import loop, restarts

SEED, STEPS, MILLION = 42, 4, 1_000_000
SCORES = ("pruned", "eval", "train_loss", "steps")


@pytest.fixture
def trainings(monkeypatch):
    """What each call of the training loop began with."""
    seen = []
    train = loop.train

    def watch(net, until, rate, on_step):
        rates = [rate(step) for step in range(net.step, until)]
        weights = {name: weight.clone() for name, weight in net.engine.full_weights().items()}
        seen.append({"seed": net.args.seed, "step": net.step, "rates": rates, "weights": weights})
        return train(net, until, rate, on_step)

    monkeypatch.setattr(loop, "train", watch)
    return seen


def table(out: Path, name: str = "controls") -> list[dict]:
    return json.loads((out / f"{name}.json").read_text())


def scores(row: dict) -> list:
    return [row[name] for name in SCORES]


def without_times(rows: list[dict]) -> list[dict]:
    timeless = [
        {k: v for k, v in row.items() if k not in ("seconds", "peak_memory")} for row in rows
    ]
    return [
        {**row, "restarts": without_times(row["restarts"])} if "restarts" in row else row
        for row in timeless
    ]


def is_dense(ticket: Ticket) -> bool:
    return all(bool(mask.all()) for mask in ticket.masks.values())


def test_a_long_dense_network_is_one_dense_training_of_k_plus_1_rounds(search, transfer, tmp_path):
    found = search(control="dense_long")
    for k, row in zip((2, 3), table(found), strict=True):
        steps = (k + 1) * STEPS
        dense = transfer(SEED, max_steps=steps, output_dir=tmp_path / f"dense{k}")
        assert scores(row) == scores(table(dense, "results")[0])
        assert row["steps"] == steps and row["pruned"] == 0
        stage = found / f"controls/dense_long/{k:02d}"
        ticket = Ticket.load(found / f"rounds/{k:02d}/ticket.safetensors")
        assert row["ticket_sparsity"] == ticket.sparsity > 0 == row["sparsity"]
        assert is_dense(Ticket.load(stage / "ticket.safetensors"))


def test_a_transfer_gives_a_budget_of_the_tickets_rounds(search, transfer, tmp_path):
    found = search()
    for k, control in ((0, "dense_long"), (2, "dense_long"), (0, "dense_restarts")):
        ticket = found / f"rounds/{k:02d}/ticket.safetensors"
        flags = {"ticket": ticket, "control": control, "output_dir": tmp_path / f"{control}{k}"}
        dense = transfer(5, max_steps=(k + 1) * STEPS, output_dir=tmp_path / f"dense{k}")
        (row,) = table(transfer(5, **flags), "results")
        assert scores(row) == scores(table(dense, "results")[0])
        assert row["ticket_sparsity"] == Ticket.load(ticket).sparsity


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"rewind_step": 2},
        {"lr_span": "all_rounds"},
        {"early_bird": True},
        {"distill": True},
        {"rewind": "none"},
    ],
)
def test_a_long_dense_network_starts_from_theta_0_and_decays_over_all_its_steps(
    flags, search, trainings
):
    search(control="dense_long", target_sparsity=0.1, **flags)
    first, last = trainings[0], trainings[-1]
    assert last["step"] == 0 and len(last["rates"]) == 2 * STEPS
    assert last["rates"] == [0.01 * (1 - step / (2 * STEPS)) for step in range(2 * STEPS)]
    assert all(torch.equal(last["weights"][name], w) for name, w in first["weights"].items())


def test_a_long_dense_network_is_not_distilled(search, tmp_path):
    plain, distilled = (
        search(control="dense_long", target_sparsity=0.1, output_dir=tmp_path / str(flag), **flag)
        for flag in ({}, {"distill": True})
    )
    assert scores(table(plain)[0]) == scores(table(distilled)[0])
    assert table(plain, "results")[1]["eval"] != table(distilled, "results")[1]["eval"]


def test_restarts_are_dense_trainings_with_seeds_of_their_own_and_the_best_counts(
    search, transfer, tmp_path
):
    found = search(control="dense_restarts", target_sparsity=0.2, max_train_samples=16)
    seeds = [SEED, SEED + MILLION, SEED + 2 * MILLION]
    dense = transfer(*seeds, max_train_samples=16, output_dir=tmp_path / "dense")
    expected = {row["seed"]: row for row in table(dense, "results")}
    for row, count in zip(table(found), (2, 3), strict=True):
        assert [each["seed"] for each in row["restarts"]] == seeds[:count]
        for each in row["restarts"]:
            single = expected[each["seed"]]
            assert (each["eval"], each["train_loss"]) == (single["eval"], single["train_loss"])
        best = max(row["restarts"], key=lambda each: each["eval"]["accuracy"])
        assert (row["eval"], row["train_loss"]) == (best["eval"], best["train_loss"])
        assert row["steps"] == count * STEPS and row["pruned"] == 0
        stage = found / f"controls/dense_restarts/{row['round']:02d}"
        kept = predictions.read(stage)
        for name, array in predictions.read(dense / f"seeds/{best['seed']:02d}").items():
            assert numpy.array_equal(kept[name], array)
        assert not (stage / restarts.FILE).exists()


def test_the_best_restart_is_the_first_of_the_best_by_the_metrics_own_sense():
    accuracy = [{"eval": {"accuracy": score}} for score in (0.5, 0.9, 0.9)]
    assert restarts.best(accuracy) is accuracy[1]
    perplexity = [{"eval": {"perplexity": score}} for score in (7.0, 9.0, 5.0)]
    assert restarts.best(perplexity) is perplexity[2]


def test_seeds_of_one_study_share_no_restart():
    shared = [set(restarts.seeds(seed, 30)) for seed in range(1, 100)]
    assert len(set.union(*shared)) == 99 * 30
    assert restarts.seeds(2**32 - 1, 2) == [2**32 - 1, MILLION - 1]


def test_the_network_of_the_best_restart_is_kept(search, transfer, tmp_path, monkeypatch):
    """The best is made the first, the middle and the last of three in turn."""
    found = search(target_sparsity=0.2)
    evaluate = loop.evaluate
    for best in range(3):
        weights = []

        def score(net, on_batch, weights=weights, best=best):
            result = evaluate(net, on_batch)
            scores = {**result.scores, "accuracy": float(len(weights) == best)}
            weights.append({name: w.clone() for name, w in net.engine.full_weights().items()})
            return loop.Evaluation(scores, result.examples)

        monkeypatch.setattr(loop, "evaluate", score)
        flags = {"ticket": found, "control": "dense_restarts", "keep_network": True}
        out = transfer(5, **flags, output_dir=tmp_path / f"best{best}")
        kept = load_file(out / "seeds/05/model/model.safetensors")
        assert len(weights) == 3
        assert all(torch.equal(kept[name], weight) for name, weight in weights[best].items())


@pytest.mark.parametrize("control", ["dense_long", "dense_restarts"])
@pytest.mark.parametrize("stop", ["in the first training", "in a later training", "between"])
def test_an_interrupted_reference_ends_like_an_uninterrupted_one(
    control, stop, search, tmp_path, monkeypatch
):
    flags = {"control": control, "target_sparsity": 0.2, "save_steps": 3}
    whole = search(output_dir=tmp_path / "whole", **flags)

    class Killed(Exception):
        pass

    train, write, calls = loop.train, restarts.write, []
    rounds = 4  # calls before the controls: two in round 0, to θ₀ and to its end

    def killed_in_training(net, until, rate, on_step):
        def on_each(step, loss):
            on_step(step, loss)
            number = {"in the first training": rounds + 1, "in a later training": rounds + 2}
            if len(calls) == number.get(stop) and step == 3:
                raise Killed

        calls.append(net.args.seed)
        return train(net, until, rate, on_each)

    def killed_after_writing(stage, results):
        write(stage, results)
        raise Killed

    monkeypatch.setattr(loop, "train", killed_in_training)
    if stop == "between" and control == "dense_restarts":
        monkeypatch.setattr(restarts, "write", killed_after_writing)
    elif stop == "between":
        monkeypatch.setattr(imp.RunDirectory, "mark_done", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        search(output_dir=tmp_path / "parts", **flags)
    monkeypatch.undo()
    begun = []
    monkeypatch.setattr(
        loop,
        "train",
        lambda net, *rest: (begun.append((net.args.seed, net.step)), train(net, *rest)),
    )
    parts = search(output_dir=tmp_path / "parts", **flags)
    assert without_times(table(parts)) == without_times(table(whole))
    for k in (1, 2):
        here, there = (out / f"controls/{control}/{k:02d}" for out in (parts, whole))
        assert sorted(path.name for path in here.iterdir()) == sorted(
            path.name for path in there.iterdir()
        )
        for name, array in predictions.read(there).items():
            assert numpy.array_equal(predictions.read(here)[name], array)
    expected = {"in the first training": (SEED, 3), "in a later training": (SEED + MILLION, 3)}
    if control == "dense_restarts":
        assert begun[0] == expected.get(stop, (SEED + MILLION, 0))


def test_listeners_see_one_stage_whose_steps_go_on(search, monkeypatch):
    events = []

    class Recorder(Listener):
        def __init__(self, *_):
            pass

        def start(self, stage, sparsity, steps, resumed):
            events.append((stage.name, round(sparsity, 1), steps, resumed))

        def step(self, step, loss):
            events.append(step)

        def usage(self, step, metrics):
            pass

        def end(self, stage, row):
            events.append(row["steps"])

        def finish(self, pictures, table):
            events.append(table)

    monkeypatch.setattr(trackers.TRACKERS, "_entries", {**trackers.TRACKERS})
    trackers.register_tracker("recorder", Tracker(Recorder))
    search(control="dense_restarts", target_sparsity=0.1, report_to="recorder")
    *_, shown = events
    steps = 2 * STEPS
    beginning = events.index(("dense_restarts 01", 0.1, steps, False))
    assert events[beginning + 1 : -1] == [*range(1, steps + 1), steps]
    assert "beside the ticket of 10.01 %; nothing is pruned" in shown
    assert "the best of 2 trainings, chosen on the validation data" in shown
    assert f"{SEED + MILLION} 0." in shown and "optimistic" in shown


def test_a_ticket_knows_how_many_rounds_of_search_led_to_it(search, transfer, tmp_path):
    found = search(control="random_mask")
    tickets = [Ticket.load(found / f"rounds/{k:02d}/ticket.safetensors") for k in range(4)]
    assert [ticket.rounds for ticket in tickets] == [0, 1, 2, 3]
    further = search(ticket=found, target_sparsity=0.5, output_dir=tmp_path / "further")
    assert Ticket.load(further / "ticket.safetensors").rounds == 3 + 2
    control = Ticket.load(found / "controls/random_mask/03/ticket.safetensors")
    unknown = (control, tickets[1].union(tickets[2]))
    assert [ticket.rounds for ticket in unknown] == [None, None]
    tickets[1].arguments["rounds"] = "2"
    assert tickets[1].rounds is None


@pytest.mark.parametrize("rounds", [None, 10**9])
def test_a_ticket_of_unknown_rounds_has_no_budget(rounds, search, transfer, tmp_path):
    ticket = Ticket.load(search(target_sparsity=0.1) / "ticket.safetensors")
    ticket.arguments["rounds"] = rounds
    ticket.save(tmp_path / "old.safetensors")
    flags = {"ticket": tmp_path / "old.safetensors", "control": "dense_long"}
    for run in (transfer, search):
        with pytest.raises(BadInput, match=r"--control dense_long: .* how many rounds of search"):
            run(
                **flags,
                target_sparsity=None if run is transfer else 0.4,
                output_dir=tmp_path / "no",
            )
    assert not (tmp_path / "no").exists()


def test_a_search_from_a_ticket_counts_the_rounds_of_both_searches(search, tmp_path):
    found = search(target_sparsity=0.2)
    flags = {"ticket": found, "control": "dense_long", "target_sparsity": 0.3}
    (row,) = table(search(**flags, output_dir=tmp_path / "further"))
    assert row["steps"] == (2 + 1 + 1) * STEPS and row["pruned"] == 0


def test_the_demo_trains_both_references(undrawn, tmp_path):
    flags = ["--task", "sst2", "--preset", "demo", "--report_to", "none", "--max_steps", "2"]
    flags += ["--max_train_samples", "32", "--max_eval_samples", "16", "--prune_rate", "0.6"]
    flags += ["--target_sparsity", "0.6"]
    for control in ("dense_long", "dense_restarts"):
        out = tmp_path / control
        AcceleratorState._reset_state(reset_partial_state=True)
        imp.run(parse([*flags, "--control", control, "--output_dir", str(out)]))
        (row,) = table(out)
        assert row["steps"] == 2 * 2 and row["sparsity"] == 0
        assert round(row["ticket_sparsity"], 3) == 0.6

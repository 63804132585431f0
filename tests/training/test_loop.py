"""Batches depend on their number alone, and scores do not depend on batches."""

import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.tasks import registry
from lth_scale.training import environment, loop, networks, optimizers
from lth_scale.training.batches import Batches
from lth_scale.training.forward_check import check_forward


@pytest.fixture
def loaded(small):
    args = parse(small(gradient_accumulation_steps=2))
    return registry.load_task(args), args


def rows_of(batches: Batches, n: int) -> list[tuple]:
    ids, mask = batches[n]["input_ids"], batches[n]["attention_mask"]
    return [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ranks_share_each_epoch_out_and_every_row_is_in_it(world, loaded):
    task, args = loaded
    ranks = [Batches(task, args, rank, world) for rank in range(world)]
    micro_steps = ranks[0].steps_per_epoch * args.gradient_accumulation_steps
    seen = [row for batches in ranks for n in range(micro_steps) for row in rows_of(batches, n)]
    everything = [tuple(ids) for ids in task.train["input_ids"]]
    assert set(seen) == set(everything)
    assert len(seen) == ranks[0].steps_per_epoch * 8 * 2 * world >= len(everything)


def test_rows_that_a_network_cannot_read_in_training_are_found_before_it_is_prepared(
    loaded, monkeypatch
):
    task, args = loaded
    forward, seen = task.model.forward, []

    def only_multiples_of_8(input_ids, **others):
        seen.append(input_ids.shape)
        if task.model.training and input_ids.shape[1] % 8:
            raise ValueError("If training, the length has to be a multiple of 8")
        return forward(input_ids, **others)

    state = torch.get_rng_state()
    check_forward(task, args)
    assert torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr(task.model, "forward", only_multiples_of_8)
    message = (
        r"--model_name_or_path .* cannot read the rows of --task sst2 \(.* multiple of 8\); use"
    )
    with pytest.raises(BadInput, match=message):
        check_forward(task, args)
    shortest = min(len(ids) for ids in task.train["input_ids"])
    assert seen[0] == (1, shortest)


@pytest.mark.parametrize("split", ["train", "validation", "mismatched"])
def test_a_row_without_a_token_is_named_by_its_split_and_number(split, loaded):
    task, args = loaded
    names = {"train": task.train, "validation": task.validation, "mismatched": task.validation}
    empty = names[split].map(
        lambda row, i: {**row, "input_ids": row["input_ids"] if i != 2 else []}, with_indices=True
    )
    more = {"mismatched": names["mismatched"]}
    changed = (
        {"more": {"mismatched": empty}} if split == "mismatched" else {split: empty, "more": more}
    )
    with pytest.raises(
        BadInput,
        match=rf"--dataset_path .*: {split}: row 3 is empty, .*; fill it, or remove the row",
    ):
        check_forward(replace(task, **changed), args)


def test_a_batch_is_a_function_of_its_number(loaded):
    task, args = loaded
    first, second = Batches(task, args, 0, 1), Batches(task, args, 0, 1)
    assert rows_of(first, 3) == rows_of(second, 3)  # not asked in order, and by another object
    later = 3 + first.steps_per_epoch * args.gradient_accumulation_steps
    assert rows_of(first, 3) != rows_of(first, later)  # another epoch, another order


def test_masked_tokens_are_redrawn_each_time_and_replayed_for_the_same_number(
    small, text_data, monkeypatch
):
    args = parse(small(task="mlm", dataset_path=text_data))
    task = registry.load_task(args)
    batches = Batches(task, args, 0, 1)
    monkeypatch.setattr(
        torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU's dropout draws from there")
    )
    state = torch.get_rng_state()
    once, again, other = batches[0], Batches(task, args, 0, 1)[0], Batches(task, args, 1, 2)[0]
    assert torch.equal(once["labels"], again["labels"])
    assert not torch.equal(once["labels"], other["labels"])
    assert torch.equal(state, torch.get_rng_state())  # dropout's generator is not touched


def test_batches_of_a_classification_task_hold_rows_of_similar_length(loaded):
    task, args = loaded
    batches = Batches(task, args, 0, 1)
    lengths = [
        [len(row) for row in rows_of(batches, n)] for n in range(batches.steps_per_epoch * 2)
    ]
    within = sum(max(group) - min(group) for group in lengths) / len(lengths)
    every = [len(ids) for ids in task.train["input_ids"]]
    assert within < (max(every) - min(every)) / 2


def test_worker_processes_change_nothing(small, command, tmp_path):
    # In new processes: other tests may have changed how floats round here, or not survive a fork.
    for workers in (0, 1):
        done = command(
            "lth_scale.imp",
            *small(output_dir=tmp_path / str(workers), dataloader_num_workers=workers),
        )
        assert done.returncode == 0, done.stderr
    alone, helped = (tmp_path / str(workers) / "ticket.safetensors" for workers in (0, 1))
    assert alone.read_bytes() == helped.read_bytes()


def test_scores_do_not_depend_on_the_evaluation_batch(search, tmp_path):
    import json

    rows = [
        json.loads(
            (
                search(output_dir=tmp_path / str(size), per_device_eval_batch_size=size)
                / "results.json"
            ).read_text()
        )
        for size in (3, 64)
    ]
    for one, other in zip(*rows, strict=True):
        assert one["eval"]["accuracy"] == other["eval"]["accuracy"]
        assert one["eval"]["loss"] == pytest.approx(other["eval"]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        ("linear", 0, [1.0, 0.75, 0.5, 0.25]),
        ("linear", 2, [0.0, 0.5, 1.0, 0.5]),
        ("linear", 0.5, [0.0, 0.5, 1.0, 0.5]),
        ("constant", 0, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rates_over_four_steps(kind, warmup, expected, small):
    args = parse(small(lr_scheduler_type=kind, warmup_steps=warmup, learning_rate=1.0))
    rate = optimizers.learning_rates(args, 4)
    assert [rate(step) for step in range(4)] == expected


def test_vectors_do_not_decay_and_matrices_do(small, loaded):
    args = parse(small(weight_decay=0.1))
    optimizer = optimizers.make_optimizer(args, loaded[0].model, torch.device("cpu"))
    assert all(w.ndim >= 2 for w in optimizer.param_groups[0]["params"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(
        list(loaded[0].model.parameters())
    )


@pytest.mark.parametrize("imitates", [True, False])
@pytest.mark.parametrize("bf16", [True, None])
def test_bf16_on_a_cpu_that_imitates_it_is_told_of_once(bf16, imitates, small, monkeypatch, caplog):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(environment, "emulates_bf16", lambda: imitates)
    environment.make_accelerator(parse(small(bf16=bf16)))
    said = [record.getMessage() for record in caplog.records if record.name == "lth_scale"]
    assert len(said) == bool(bf16 and imitates) and all(
        "--bf16" in line and "leave it out" in line for line in said
    )


def test_a_flag_that_overrules_the_launchers_precision_is_told_of(small, monkeypatch, caplog):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(environment, "emulates_bf16", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    accelerator = environment.make_accelerator(parse(small(bf16=True)))
    assert environment.settings_in_force(accelerator)["precision"] == "bf16"
    assert "the launcher's precision, fp16, is overridden: this run uses bf16" in caplog.text


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").is_file() or platform.machine() != "x86_64",
    reason="reads x86 Linux's",
)
def test_a_cpu_imitates_bf16_unless_it_says_that_it_has_the_instructions():
    flags = set(re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    assert environment.emulates_bf16() == (not flags & {"avx512_bf16", "amx_tile"})


def test_a_search_with_the_8_bit_optimizer_holds_its_masks(search):
    if not torch.cuda.is_available():
        pytest.skip("adamw_bnb_8bit needs a CUDA GPU")
    pytest.importorskip("bitsandbytes")
    out = search(
        optim="adamw_bnb_8bit", weight_decay=0.1
    )  # `train` asserts that the mask holds after every round
    assert (out / "complete").exists()


def test_a_step_that_overflows_changes_nothing_and_a_restart_restores_the_loss_scale(small):
    """fp16 needs a GPU in Accelerate; the scaler that skips its steps does not."""
    from accelerate.state import AcceleratorState

    from lth_scale.pruning import masking
    from lth_scale.training.tickets import initial_ticket

    AcceleratorState._reset_state(reset_partial_state=True)
    args = parse(small())
    accelerator = environment.make_accelerator(args)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    net = networks.prepare(accelerator, registry.load_task(args), args)
    masks = {name: torch.rand(mask.shape) > 0.5 for name, mask in initial_ticket(net).masks.items()}
    theta = net.initial
    networks.restart(net, theta, masks, 0, 1)
    before = net.engine.full_weights()
    accelerator.scaler.load_state_dict(accelerator.scaler.state_dict() | {"scale": float("inf")})
    loop.train(net, 1, lambda step: 1.0, lambda step, loss: None)
    assert all(
        torch.equal(before[name], weight) for name, weight in net.engine.full_weights().items()
    )

    networks.restart(net, theta, masks, 0, 1)
    assert accelerator.scaler.get_scale() == 2.0**16
    loop.train(net, 2, lambda step: 0.01, lambda step, loss: None)
    assert masking.is_held(net.targets, net.masks)
    assert any(
        not torch.equal(before[name], weight) for name, weight in net.engine.full_weights().items()
    )


def test_a_loss_that_is_no_number_stops_the_round_and_those_before_it_stand(
    search, monkeypatch, tmp_path
):
    import json

    from lth_scale.config.errors import Diverged

    loss_of, calls = loop.loss_of, []

    def spoil(net, batch):
        calls.append(net.step)
        return loss_of(net, batch) * (
            float("nan") if len(calls) == 6 else 1.0
        )  # the second step of round 1

    monkeypatch.setattr(loop, "loss_of", spoil)
    with pytest.raises(Diverged, match=r"by step 2 of 4.*--learning_rate 0.01"):
        search(logging_steps=2)
    assert [row["round"] for row in json.loads((tmp_path / "out/results.json").read_text())] == [0]
    assert not (tmp_path / "out/rounds/01/complete").exists()
    monkeypatch.setattr(loop, "loss_of", loss_of)
    assert (search(logging_steps=2) / "complete").is_file()


def test_a_validation_loss_that_is_no_number_gives_no_score(search, monkeypatch, tmp_path):
    import json

    from lth_scale.config.errors import Diverged

    step_optimizer, calls = loop.step_optimizer, []

    def spoil(net, rate):
        step_optimizer(net, rate)
        calls.append(net.step)
        if len(calls) == 8:  # the last one of round 1: no later loss of training tells
            next(iter(net.engine.model.parameters())).data.fill_(float("nan"))

    monkeypatch.setattr(loop, "step_optimizer", spoil)
    with pytest.raises(
        Diverged, match=r"a validation row is NaN or infinite after step 4;.*--learning_rate 0.01"
    ):
        search()
    assert [row["round"] for row in json.loads((tmp_path / "out/results.json").read_text())] == [0]


def test_the_same_command_twice_finds_the_same_to_the_last_bit(search, tmp_path):
    import json

    first, second = (
        search(output_dir=tmp_path / name, full_determinism=True, rewind_step=1)
        for name in ("a", "b")
    )
    assert (first / "ticket.safetensors").read_bytes() == (
        second / "ticket.safetensors"
    ).read_bytes()
    rows = [json.loads((out / "results.json").read_text()) for out in (first, second)]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["eval"] == theirs["eval"] and ours["train_loss"] == theirs["train_loss"]
    torch.use_deterministic_algorithms(False)

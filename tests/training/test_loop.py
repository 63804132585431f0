"""Batches depend on their number alone, scores do not depend on batches, and the loop's errors."""

import json
import math
import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from lth_scale.config.errors import BadInput, Diverged
from lth_scale.config.resolution import parse
from lth_scale.pruning import masking
from lth_scale.tasks import registry
from lth_scale.training import loop, networks, optimizers, preparation
from lth_scale.training.batches import Batches, check_forward


@pytest.fixture
def loaded(small):
    args = parse(small(gradient_accumulation_steps=2))
    return registry.load_task(args), args


def rows_of(batches: Batches, n: int) -> list[tuple]:
    ids, mask = batches[n]["input_ids"], batches[n]["attention_mask"]
    return [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids, mask, strict=True)]


def results(run: Path) -> list[dict]:
    return json.loads((run / "results.json").read_text())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ranks_share_each_epoch_and_together_read_every_row(world, loaded):
    task, args = loaded
    ranks = [Batches(task, args, rank, world) for rank in range(world)]
    micro_steps = ranks[0].steps_per_epoch * args.gradient_accumulation_steps
    seen = [row for batches in ranks for n in range(micro_steps) for row in rows_of(batches, n)]
    everything = [tuple(ids) for ids in task.train["input_ids"]]
    assert set(seen) == set(everything)
    assert len(seen) == ranks[0].steps_per_epoch * 8 * 2 * world >= len(everything)


def test_rows_that_a_network_cannot_read_are_refused_before_it_is_prepared(loaded, monkeypatch):
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
    message = r"--model_name_or_path .* cannot read the rows of --task sst2 \(.* multiple of 8\)"
    with pytest.raises(BadInput, match=message + "; use"):
        check_forward(task, args)
    assert seen[0] == (1, min(len(ids) for ids in task.train["input_ids"]))


@pytest.mark.parametrize("split", ["train", "validation", "mismatched"])
def test_a_row_without_tokens_is_named_by_its_split_and_number(split, loaded):
    task, args = loaded
    splits = {"train": task.train, "validation": task.validation, "mismatched": task.validation}
    splits[split] = splits[split].map(
        lambda row, i: {**row, "input_ids": row["input_ids"] if i != 2 else []}, with_indices=True
    )
    more = {"mismatched": splits.pop("mismatched")}
    message = rf"--dataset_path .*: {split}: row 3 is empty, .*; fill it, or remove the row"
    with pytest.raises(BadInput, match=message):
        check_forward(replace(task, **splits, more=more), args)


def test_a_batch_is_a_function_of_its_number(loaded):
    task, args = loaded
    first, second = Batches(task, args, 0, 1), Batches(task, args, 0, 1)
    assert rows_of(first, 3) == rows_of(second, 3)  # out of order, and from another object
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
    assert torch.equal(state, torch.get_rng_state())  # dropout's generator has not changed


def test_batches_of_a_classification_task_have_rows_of_similar_length(loaded):
    task, args = loaded
    batches = Batches(task, args, 0, 1)
    lengths = [
        [len(row) for row in rows_of(batches, n)] for n in range(batches.steps_per_epoch * 2)
    ]
    within = sum(max(group) - min(group) for group in lengths) / len(lengths)
    every = [len(ids) for ids in task.train["input_ids"]]
    assert within < (max(every) - min(every)) / 2


def test_worker_processes_do_not_change_the_ticket(small, command, tmp_path):
    # In new processes: other tests may have changed how floats round here, or not survive a fork.
    tickets = []
    for workers in (0, 1):
        out = tmp_path / str(workers)
        done = command("lth_scale.imp", *small(output_dir=out, dataloader_num_workers=workers))
        assert done.returncode == 0, done.stderr
        tickets.append((out / "ticket.safetensors").read_bytes())
    assert tickets[0] == tickets[1]


def test_scores_do_not_depend_on_the_evaluation_batch(search, tmp_path):
    rows = [
        results(search(output_dir=tmp_path / str(size), per_device_eval_batch_size=size))
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
    assert [*map(loop.learning_rates(args, 4), range(4))] == expected


def test_weight_decay_applies_to_matrices_and_not_to_vectors(small, loaded):
    model = loaded[0].model
    optimizer = optimizers.make_optimizer(
        parse(small(weight_decay=0.1)), model, torch.device("cpu")
    )
    matrices, vectors = optimizer.param_groups
    assert all(weight.ndim >= 2 for weight in matrices["params"])
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert len(matrices["params"]) + len(vectors["params"]) == len([*model.parameters()])


@pytest.mark.parametrize("emulates", [True, False])
@pytest.mark.parametrize("bf16", [True, None])
def test_bf16_on_a_cpu_that_emulates_it_logs_one_warning(
    bf16, emulates, small, monkeypatch, caplog
):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(preparation, "emulates_bf16", lambda: emulates)
    preparation.make_accelerator(parse(small(bf16=bf16)))
    lines = [record.getMessage() for record in caplog.records if record.name == "lth_scale"]
    assert len(lines) == bool(bf16 and emulates)
    assert all("--bf16" in line and "omit it" in line for line in lines)


def test_a_flag_that_overrides_the_launchers_precision_logs_a_warning(small, monkeypatch, caplog):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(preparation, "emulates_bf16", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    accelerator = preparation.make_accelerator(parse(small(bf16=True)))
    assert accelerator.mixed_precision == "bf16"
    assert "the launcher's precision, fp16, is overridden: this run uses bf16" in caplog.text


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").is_file() or platform.machine() != "x86_64",
    reason="reads /proc/cpuinfo of an x86 Linux",
)
def test_a_cpu_emulates_bf16_unless_it_lists_the_instructions():
    flags = set(re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    assert preparation.emulates_bf16() == (not flags & {"avx512_bf16", "amx_tile"})


def test_the_8_bit_optimizer_holds_pruned_weights_at_zero(search):
    if not torch.cuda.is_available():
        pytest.skip("adamw_bnb_8bit needs a CUDA GPU")
    pytest.importorskip("bitsandbytes")
    # `train` asserts that the mask holds after every round.
    assert (search(optim="adamw_bnb_8bit", weight_decay=0.1) / "complete").exists()


def test_a_step_that_overflows_changes_nothing_and_a_restart_restores_the_loss_scale(small):
    """fp16 needs a GPU in Accelerate; the scaler that skips its steps does not."""
    AcceleratorState._reset_state(reset_partial_state=True)
    args = parse(small())
    accelerator = preparation.make_accelerator(args)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    net = networks.prepare(accelerator, registry.load_task(args), args)
    masks = {name: torch.rand(piece.shape) > 0.5 for name, piece in net.targets.items()}
    theta = net.initial
    networks.restart(net, theta, masks, 0, 1)
    before = net.engine.full_weights()

    def unchanged() -> bool:
        return all(map(torch.equal, before.values(), net.engine.full_weights().values()))

    accelerator.scaler.load_state_dict(accelerator.scaler.state_dict() | {"scale": float("inf")})
    loop.train(net, 1, lambda step: 1.0, lambda step, loss: None)
    assert unchanged()

    networks.restart(net, theta, masks, 0, 1)
    assert accelerator.scaler.get_scale() == 2.0**16
    loop.train(net, 2, lambda step: 0.01, lambda step, loss: None)
    assert masking.is_held(net.targets, net.masks) and not unchanged()


def test_a_loss_of_nan_stops_the_round_and_keeps_the_completed_ones(search, monkeypatch, tmp_path):
    loss_of, calls = loop.loss_of, []

    def spoil(net, batch):
        calls.append(net.step)
        is_spoiled = len(calls) == 6  # the second step of round 1
        return loss_of(net, batch) * (float("nan") if is_spoiled else 1.0)

    monkeypatch.setattr(loop, "loss_of", spoil)
    with pytest.raises(Diverged, match=r"by step 2 of 4.*--learning_rate 0.01"):
        search(logging_steps=2)
    assert [row["round"] for row in results(tmp_path / "out")] == [0]
    assert not (tmp_path / "out/rounds/01/complete").exists()
    monkeypatch.setattr(loop, "loss_of", loss_of)
    assert (search(logging_steps=2) / "complete").is_file()


def test_a_validation_loss_of_nan_gives_no_score(search, monkeypatch, tmp_path):
    step_optimizer, calls = loop.step_optimizer, []

    def spoil(net, rate):
        step_optimizer(net, rate)
        calls.append(net.step)
        if len(calls) == 8:  # the last step of round 1: no later training loss shows it
            next(iter(net.engine.model.parameters())).data.fill_(float("nan"))

    monkeypatch.setattr(loop, "step_optimizer", spoil)
    message = r"a validation row is NaN or infinite after step 4;.*--learning_rate 0.01"
    with pytest.raises(Diverged, match=message):
        search()
    assert [row["round"] for row in results(tmp_path / "out")] == [0]


def test_the_same_command_twice_gives_the_same_results_to_the_last_bit(search, tmp_path):
    runs = [
        search(output_dir=tmp_path / name, full_determinism=True, rewind_step=1) for name in "ab"
    ]
    first, second = [(run / "ticket.safetensors").read_bytes() for run in runs]
    assert first == second
    for ours, theirs in zip(*map(results, runs), strict=True):
        assert ours["eval"] == theirs["eval"] and ours["train_loss"] == theirs["train_loss"]
    torch.use_deterministic_algorithms(False)


def test_distillation_halves_the_tasks_loss_and_adds_half_the_softened_divergence():
    student, teacher = torch.tensor([[0.0, 2.0 * math.log(3)]]), torch.tensor([[0.0, 0.0]])
    # softened by T = 2: (1/4, 3/4) and (1/2, 1/2); KL(teacher ‖ student) = ½ ln 2 + ½ ln ⅔
    divergence = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    blended = loop.blend(torch.tensor(1.0), student, teacher)
    assert float(blended) == pytest.approx(0.5 * 1.0 + 0.5 * 4 * divergence, rel=1e-5)


def test_a_regression_is_distilled_by_squared_error():
    student, teacher = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]])
    blended = loop.blend(torch.tensor(2.0), student, teacher)
    assert float(blended) == pytest.approx(0.5 * 2.0 + 0.5 * 2.5)


def test_a_teacher_equal_to_the_student_adds_no_loss():
    logits = torch.randn(3, 5)
    assert float(loop.blend(torch.tensor(0.0), logits, logits)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("task", ["sst2", "mlm"])
def test_from_round_1_on_the_teacher_is_the_trained_dense_network(
    task, search, text_data, sst2_data, monkeypatch
):
    teachers, loss_of = [], loop.loss_of

    def watch(net, batch):
        weights = net.teacher.named_parameters() if net.distills else ()
        teachers.append({name: weight.clone() for name, weight in weights})
        return loss_of(net, batch)

    monkeypatch.setattr(loop, "loss_of", watch)
    data = text_data if task == "mlm" else sst2_data
    out = search(task=task, dataset_path=data, distill=True, target_sparsity=0.2)
    assert not any(teachers[:4]) and all(teachers[4:]) and len(teachers) == 12
    dense = load_file(out / "rounds/00/model/model.safetensors")
    assert all(torch.equal(weight, dense[name]) for name, weight in teachers[-1].items())

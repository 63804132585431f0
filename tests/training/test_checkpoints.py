"""A round that is killed between two steps resumes there, bit for bit."""

import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lth_scale import Ticket
from lth_scale.config import manifest as listing
from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.resolution import parse
from lth_scale.tasks import registry
from lth_scale.training import batches, checkpoints, loop, networks, preparation

VARIABLE = ("seconds", "peak_memory")


class Killed(BaseException):
    """Stands for a kill within the test's own process; tests/chaos has real ones."""


@pytest.fixture
def at_step(monkeypatch):
    """Die, or do something else, as the n-th optimizer step of a command begins."""
    step = loop.step_optimizer

    def die():
        raise Killed

    def at(number, act=die):
        count = iter(range(1, 1 << 30))

        def counted(net, rate):
            if next(count) == number:
                act()
            return step(net, rate)

        monkeypatch.setattr(loop, "step_optimizer", counted)

    return at


@pytest.fixture
def saved(monkeypatch):
    """The names of the checkpoints after each call of `checkpoints.save`."""
    names, save = [], checkpoints.save

    def watched(net, directory, *more):
        save(net, directory, *more)
        names.append(names_in(directory))

    monkeypatch.setattr(checkpoints, "save", watched)
    return names


def names_in(stage: Path) -> list[str]:
    return [path.name for path in checkpoints.list_checkpoints(stage)]


def outcome(run: Path) -> dict:
    """What must not depend on how often a run was stopped."""
    contents = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix == ".safetensors":
            contents[name] = path.read_bytes()
        elif path.suffix == ".json" and path.name != "arguments.json":
            contents[name] = json.loads(
                path.read_bytes(),
                object_hook=lambda row: {k: v for k, v in row.items() if k not in VARIABLE},
            )
    return contents


COMMANDS = {
    "the defaults": {},
    "momentum": dict(optim="sgd", optim_args="momentum=0.9"),
    "amsgrad": dict(optim_args="amsgrad=true,eps=1e-3"),
    "a rewind point": dict(rewind_step="3", keep_theta="0.2"),
    "no rewinding": dict(rewind="none", weight_decay=0.1),
    "accumulated_taylor": dict(score="accumulated_taylor"),
    "early bird": dict(early_bird=True, max_steps=40, save_steps=3, target_sparsity=0.2),
    "distillation": dict(distill=True),
    "bf16 and accumulation": dict(bf16=True, gradient_accumulation_steps=2),
    "a control": dict(control="random_mask", target_sparsity=0.2),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_search_killed_in_every_round_gives_the_same_results(name, search, at_step, tmp_path):
    flags = dict(max_steps=5, save_steps=2, target_sparsity=0.3) | COMMANDS[name]
    whole = search(output_dir=tmp_path / "whole", **flags)
    for kills in range(100):
        # Except in the first steps of a round, each attempt gets at least two steps further.
        at_step(max(5, flags["max_steps"] // 4))
        try:
            parts = search(output_dir=tmp_path / "parts", **flags)
            break
        except Killed:
            assert kills < 99
    assert kills >= 2
    assert outcome(parts) == outcome(whole)


def test_a_search_begun_under_the_earlier_name_of_its_score_resumes_under_the_current_one(
    search, at_step, tmp_path
):
    flags = dict(max_steps=5, save_steps=2, target_sparsity=0.3)
    whole = search(output_dir=tmp_path / "whole", **flags, score="accumulated_taylor")
    at_step(9)  # of round 1
    out = tmp_path / "parts"
    with pytest.raises(Killed):
        search(output_dir=out, **flags, score="accumulated_taylor")
    at_step(1000)
    arguments = json.loads((out / "arguments.json").read_text()) | {"score": "movement"}
    (out / "arguments.json").write_text(json.dumps(arguments))
    for path in out.glob("rounds/*/ticket.safetensors"):
        ticket = Ticket.load(path)
        replace(ticket, arguments={**ticket.arguments, "score": "movement"}).save(path)
    names = load_file(out / "rounds/01/checkpoint-2/rank-00000.safetensors")
    assert [name for name in names if name.startswith("extra/moved/")]
    with pytest.raises(BadInput, match="use accumulated_taylor"):
        search(output_dir=out, **flags, score="movement")
    with pytest.raises(BadInput, match="--score was accumulated_taylor, is magnitude"):
        search(output_dir=out, **flags, score="magnitude")
    search(output_dir=out, **flags, score="accumulated_taylor")
    parts, once = outcome(out), outcome(whole)
    assert all(parts[name] == once[name] for name in ("ticket.safetensors", "results.json"))


@pytest.mark.parametrize("step", range(1, 6))
def test_a_search_killed_at_any_step_gives_the_same_results(step, search, at_step, tmp_path):
    flags = dict(max_steps=5, save_steps=2, target_sparsity=0.1, rewind_step="2")
    whole = search(output_dir=tmp_path / "whole", **flags)
    at_step(step)
    with pytest.raises(Killed):
        search(output_dir=tmp_path / "parts", **flags)
    assert outcome(search(output_dir=tmp_path / "parts", **flags)) == outcome(whole)


def test_a_killed_transfer_resumes_too(transfer, at_step, tmp_path):
    flags = dict(max_steps=5, save_steps=2)
    whole = transfer(1, 2, output_dir=tmp_path / "whole", **flags)
    at_step(9)
    with pytest.raises(Killed):
        transfer(1, 2, output_dir=tmp_path / "parts", **flags)
    left = [path.name for path in (tmp_path / "parts/seeds").glob("*/checkpoint-*")]
    assert left == ["checkpoint-2"]
    assert outcome(transfer(1, 2, output_dir=tmp_path / "parts", **flags)) == outcome(whole)


@pytest.mark.parametrize(("owner", "name"), [(checkpoints, "remove"), (listing, "remove_listed")])
def test_files_that_a_kill_left_in_complete_rounds_are_deleted_at_the_end(
    owner, name, search, monkeypatch, tmp_path
):
    flags = dict(max_steps=4, save_steps=2, output_dir=tmp_path / "parts")
    inner = getattr(owner, name)

    def dies(path):
        if (path.parent / "complete").is_file():
            raise Killed
        inner(path)

    while len([*tmp_path.glob("parts/rounds/*/complete")]) < 4:
        with monkeypatch.context() as dying, pytest.raises(Killed):
            dying.setattr(owner, name, dies)
            search(**flags)
    assert [*tmp_path.rglob("checkpoint-*" if owner is checkpoints else "0[0-2]/model")]
    notes = tmp_path / "parts/rounds/01/model/notes.txt"
    notes.write_text("precious")
    out = search(**flags)
    assert not [*out.rglob("checkpoint-*")]
    kept = {path for path in out.glob("rounds/*/model/*") if path.parents[1].name != "03"}
    assert kept == {notes}


@pytest.fixture
def killed(search, at_step, tmp_path, capfd):
    """A round that was killed in step 5, with checkpoints 2 and 4, and how to resume it.

    The function returns what is printed on stderr.
    """
    flags = dict(max_steps=5, save_steps=2, target_sparsity=0.1, output_dir=tmp_path / "parts")
    at_step(5)
    with pytest.raises(Killed):
        search(**flags)
    at_step(1000)
    capfd.readouterr()

    def resume(**more) -> str:
        search(**flags | more)
        return capfd.readouterr().err

    return tmp_path / "parts/rounds/00", resume


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("rank-00000.safetensors", halve),
        ("rank-00000.safetensors", flip),
        ("rank-00000.safetensors", None),
        ("checkpoint.json", halve),
        ("checkpoint.json", None),
        ("complete", None),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    file, damage, killed, search, tmp_path
):
    stage, resume = killed
    path = stage / "checkpoint-4" / file
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    printed = resume()
    assert "checkpoint-4 is skipped: " in printed and "goes on from step 2 of 5" in printed
    whole = search(max_steps=5, target_sparsity=0.1, output_dir=tmp_path / "whole")
    assert outcome(tmp_path / "parts") == outcome(whole)


def test_without_an_intact_checkpoint_the_round_starts_again(killed, search, tmp_path):
    stage, resume = killed
    for path in stage.glob("checkpoint-*/rank-00000.safetensors"):
        path.write_bytes(flip(path.read_bytes()))
    assert "starts again from step 0" in resume()
    whole = search(max_steps=5, target_sparsity=0.1, output_dir=tmp_path / "whole")
    assert outcome(tmp_path / "parts") == outcome(whole)


@pytest.mark.parametrize("key", ["world_size", "sharding", "began", "seed", "format"])
def test_a_checkpoint_of_other_ranks_or_of_another_kind_is_skipped_with_the_reason(key, killed):
    stage, resume = killed
    for path in checkpoints.list_checkpoints(stage):
        manifest = json.loads((path / "checkpoint.json").read_text()) | {key: 4}
        (path / "checkpoint.json").write_text(json.dumps(manifest))
        digest = hashlib.sha256((path / "checkpoint.json").read_bytes()).hexdigest()
        (path / "complete").write_text(digest)
    printed = resume()
    assert f"{key} was 4, is " in printed and "starts again from step 0" in printed


def test_a_round_keeps_its_last_two_checkpoints_until_it_is_complete(search, saved):
    out = search(max_steps=4, save_steps=1, target_sparsity=0)
    pairs = [[f"checkpoint-{n}", f"checkpoint-{n - 1}"] for n in (2, 3, 4)]
    assert saved == [["checkpoint-1"], *pairs]
    assert not list(out.rglob("*checkpoint*"))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_clock_that_is_set_back_costs_no_checkpoint(keep, killed, search, at_step, tmp_path):
    """Earlier checkpoints are an hour ahead, as after a correction, or on another node."""
    stage, _ = killed
    for path in stage.rglob("*"):
        os.utime(path, (path.stat().st_mtime + 3600,) * 2)
    flags = dict(max_steps=5, save_steps=0, save_total_limit=keep, target_sparsity=0.1)
    at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=r"checkpoint-5 is written"):
        search(output_dir=tmp_path / "parts", **flags)
    assert (stage / "checkpoint-5/complete").is_file()
    assert names_in(stage) == ["checkpoint-5", "checkpoint-4"][:keep]
    whole = search(output_dir=tmp_path / "whole", **flags)
    assert outcome(search(output_dir=tmp_path / "parts", **flags)) == outcome(whole)


def test_a_checkpoint_of_a_later_step_is_kept_and_deletes_no_new_one(killed, saved):
    """One that this run cannot load stays for other ranks until the round is complete."""
    stage, resume = killed
    shutil.copytree(stage / "checkpoint-4", stage / "checkpoint-9")
    resume(save_steps=1, save_total_limit=1)
    assert saved[0] == ["checkpoint-9", "checkpoint-5"] and not names_in(stage)


def test_sigterm_writes_a_checkpoint_and_stops(search, at_step, tmp_path):
    flags = dict(max_steps=5, save_steps=0, target_sparsity=0.1)
    whole = search(output_dir=tmp_path / "whole", **flags)
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=r"round 00 was asked to stop: .*checkpoint-3 is written"):
        search(output_dir=tmp_path / "parts", **flags)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    at_step(1000)
    assert outcome(search(output_dir=tmp_path / "parts", **flags)) == outcome(whole)


def test_sigusr1_writes_a_checkpoint_and_training_continues(search, at_step, saved):
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    out = search(max_steps=5, save_steps=0, target_sparsity=0.1)
    assert saved == [["checkpoint-3"]] and (out / "complete").exists()


def test_a_signal_during_evaluation_writes_a_checkpoint(search, monkeypatch, tmp_path):
    flags = dict(max_steps=4, save_steps=0, target_sparsity=0, per_device_eval_batch_size=4)
    whole = search(output_dir=tmp_path / "whole", **flags)
    select_rows, calls = batches.select_rows, []

    def watched(rows, numbers):
        calls.append(numbers)
        if len(calls) == 6:  # four batches of training, and the second of five
            os.kill(os.getpid(), signal.SIGTERM)
        return select_rows(rows, numbers)

    for module in (batches, loop):
        monkeypatch.setattr(module, "select_rows", watched)
    monkeypatch.setattr(networks, "check_forward", lambda task, args: None)  # it selects rows too
    with pytest.raises(Stopped, match="checkpoint-4 is written"):
        search(output_dir=tmp_path / "parts", **flags)
    assert len(calls) == 6
    assert outcome(search(output_dir=tmp_path / "parts", **flags)) == outcome(whole)


def test_a_full_disk_stops_the_run_and_it_resumes_once_there_is_space(
    search, monkeypatch, tmp_path
):
    flags = dict(max_steps=5, save_steps=2, target_sparsity=0.1)
    whole = search(output_dir=tmp_path / "whole", **flags)
    save, calls = checkpoints.save_file, []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) > 1:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device", str(path))
        save(tensors, path, metadata)

    monkeypatch.setattr(checkpoints, "save_file", full)
    message = r"checkpoint-4 could not be written .*No space left.*free some space"
    with pytest.raises(Stopped, match=message):
        search(output_dir=tmp_path / "parts", **flags)
    assert names_in(tmp_path / "parts/rounds/00") == ["checkpoint-2"]
    monkeypatch.setattr(checkpoints, "save_file", save)
    assert outcome(search(output_dir=tmp_path / "parts", **flags)) == outcome(whole)
    assert not list((tmp_path / "parts").rglob("*.tmp"))


@pytest.fixture
def written(small, tmp_path):
    """A network two steps into a round, its checkpoint, and a function that restarts it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    args = parse(small())
    net = networks.prepare(preparation.make_accelerator(args), registry.load_task(args), args)
    theta = net.initial
    masks = {name: torch.rand(piece.shape) > 0.5 for name, piece in net.targets.items()}

    def restart() -> None:
        networks.restart(net, theta, masks, 0, 1)

    restart()
    loop.train(net, 2, lambda step: 0.01, lambda *_: None)
    checkpoints.save(net, tmp_path, {}, 1.5, 1)
    return net, tmp_path / "checkpoint-2", restart


def state_of(net) -> tuple[list, list[torch.Tensor]]:
    numbers = [sorted(net.engine.loss_scale().items()), net.step]
    tensors = [value for _, value in sorted(net.engine.state().items())]
    return numbers, [torch.get_rng_state(), *tensors]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_changed_byte_and_any_cut_of_any_file_is_refused(written, data):
    net, path, restart = written
    torch.manual_seed(3)
    victim = data.draw(st.sampled_from(sorted(path.iterdir())))
    whole = victim.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "insert", "swap"]))
    broken = {
        "flip": whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
        "cut": whole[:at],
        "insert": whole[:at] + b"7" + whole[at:],
        "swap": whole[:at] + whole[at:][::-1],
    }[change]
    victim.write_bytes(broken)
    try:
        restart()
        numbers, tensors = state_of(net)
        resumed = checkpoints.resume(net, path.parent)
        if broken != whole:
            assert resumed is None
            numbers_now, tensors_now = state_of(net)
            assert numbers_now == numbers
            assert all(map(torch.equal, tensors, tensors_now)) and len(tensors) == len(tensors_now)
    finally:
        victim.write_bytes(whole)


def test_a_renamed_checkpoint_is_refused(written):
    net, path, restart = written
    shutil.copytree(path, path.with_name("checkpoint-3"))
    restart()
    assert checkpoints.resume(net, path.parent) is not None and net.step == 2

"""A round that is killed between two steps resumes there, bit for bit."""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lth_scale.config import listing
from lth_scale.config.errors import Stopped
from lth_scale.config.resolution import parse
from lth_scale.tasks import registry
from lth_scale.training import batches, checkpoints, environment, evaluation, loop, networks

VARIABLE = ("seconds", "peak_memory")


class Killed(BaseException):
    """Stands for a kill within the test's own process; tests/chaos has real ones."""


@pytest.fixture
def die(monkeypatch):
    """Do something (or die) as the n-th optimizer step of a command begins."""
    step = loop.step_optimizer

    def at(number, act=None):
        count = iter(range(1, 1 << 30))

        def counted(net, rate):
            if next(count) == number:
                if act is None:
                    raise Killed
                act()
            return step(net, rate)

        monkeypatch.setattr(loop, "step_optimizer", counted)

    return at


def outcome(run: Path) -> dict:
    """What must not depend on how often a run was stopped."""
    found = {}
    for path in sorted(run.rglob("*")):
        if (
            path.is_file()
            and path.suffix in (".json", ".safetensors")
            and path.name != "arguments.json"
        ):
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.loads(
                    content, object_hook=lambda d: {k: v for k, v in d.items() if k not in VARIABLE}
                )
            found[str(path.relative_to(run))] = content
    return found


COMMANDS = {
    "the defaults": {},
    "momentum": dict(optim="sgd", optim_args="momentum=0.9"),
    "amsgrad": dict(optim_args="amsgrad=true,eps=1e-3"),
    "a rewind point": dict(rewind_step="3", keep_theta="0.2"),
    "no rewinding": dict(rewind="none", weight_decay=0.1),
    "movement": dict(score="movement"),
    "early bird": dict(early_bird=True, max_steps=40, save_steps=3, target_sparsity=0.2),
    "distillation": dict(distill=True),
    "bf16 and accumulation": dict(bf16=True, gradient_accumulation_steps=2),
    "a control": dict(control="random_mask", target_sparsity=0.2),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_in_every_round_a_search_finds_what_it_would_have_found(name, search, die, tmp_path):
    flags = dict(max_steps=5, save_steps=2, target_sparsity=0.3) | COMMANDS[name]
    whole = search(output_dir=tmp_path / "whole", **flags)
    for left in range(100):
        die(
            max(5, flags["max_steps"] // 4)
        )  # at least two steps further each time, but for a round's first
        try:
            parts = search(output_dir=tmp_path / "parts", **flags)
            break
        except Killed:
            assert left < 99
    assert left >= 2
    assert outcome(parts) == outcome(whole)


@pytest.mark.parametrize("at", range(1, 6))
def test_whatever_step_it_dies_at(at, search, die, tmp_path):
    flags = dict(max_steps=5, save_steps=2, target_sparsity=0.1, rewind_step="2")
    whole = search(output_dir=tmp_path / "whole", **flags)
    die(at)
    with pytest.raises(Killed):
        search(output_dir=tmp_path / "parts", **flags)
    assert outcome(search(output_dir=tmp_path / "parts", **flags)) == outcome(whole)


def test_a_transfer_goes_on_too(transfer, die, tmp_path):
    flags = dict(max_steps=5, save_steps=2)
    whole = transfer(1, 2, output_dir=tmp_path / "whole", **flags)
    die(9)
    with pytest.raises(Killed):
        transfer(1, 2, output_dir=tmp_path / "parts", **flags)
    assert [path.name for path in (tmp_path / "parts/seeds").glob("*/checkpoint-*")] == [
        "checkpoint-2"
    ]
    assert outcome(transfer(1, 2, output_dir=tmp_path / "parts", **flags)) == outcome(whole)


@pytest.mark.parametrize(("owner", "name"), [(checkpoints, "remove"), (listing, "remove_listed")])
def test_what_a_kill_kept_a_complete_round_from_deleting_is_gone_in_the_end(
    owner, name, search, monkeypatch, tmp_path
):
    flags, inner = (
        dict(max_steps=4, save_steps=2, output_dir=tmp_path / "parts"),
        getattr(owner, name),
    )

    def dies(path):
        if (path.parent / "complete").is_file():
            raise Killed
        inner(path)

    while len([*tmp_path.glob("parts/rounds/*/complete")]) < 4:
        with monkeypatch.context() as dying, pytest.raises(Killed):
            dying.setattr(owner, name, dies)
            search(**flags)
    assert [*tmp_path.rglob("checkpoint-*" if owner is checkpoints else "0[0-2]/model")]
    mine = tmp_path / "parts/rounds/01/model/notes.txt"
    mine.write_text("precious")
    out = search(**flags)
    assert not [path for path in out.rglob("*") if path.name.startswith("checkpoint-")]
    kept = {path for path in out.glob("rounds/*/model/*") if path.parents[1].name != "03"}
    assert kept == {mine}


@pytest.fixture
def stopped(search, die, tmp_path, capfd):
    """A round that died in step 5, with checkpoints 2 and 4, and the command to resume it."""
    flags = dict(max_steps=5, save_steps=2, target_sparsity=0.1, output_dir=tmp_path / "parts")
    die(5)
    with pytest.raises(Killed):
        search(**flags)
    die(1000)
    capfd.readouterr()
    return tmp_path / "parts/rounds/00", lambda **more: (
        search(**flags | more),
        capfd.readouterr().err,
    )[1]


def damage(path: Path, how: str) -> None:
    victim = path / ("checkpoint.json" if "json" in how else "rank-00000.safetensors")
    content = bytearray(victim.read_bytes())
    if how.startswith("cut"):
        content = content[: len(content) // 2]
    elif how.startswith("flipped"):
        content[len(content) // 2] ^= 16
    elif how.startswith("lost"):
        return victim.unlink()
    elif how == "unmarked":
        return (path / "complete").unlink()
    victim.write_bytes(content)


HOWS = ["cut", "cut json", "flipped", "lost", "lost json", "unmarked"]


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    how, stopped, search, tmp_path
):
    home, go_on = stopped
    damage(home / "checkpoint-4", how)
    said = go_on()
    assert "checkpoint-4 is left out: " in said and "goes on from step 2 of 5" in said
    whole = search(max_steps=5, target_sparsity=0.1, output_dir=tmp_path / "whole")
    assert outcome(tmp_path / "parts") == outcome(whole)


def test_without_any_whole_checkpoint_the_round_starts_again(stopped, search, tmp_path):
    home, go_on = stopped
    for name in ("checkpoint-2", "checkpoint-4"):
        damage(home / name, "flipped")
    assert "goes on from step 0" in go_on()
    whole = search(max_steps=5, target_sparsity=0.1, output_dir=tmp_path / "whole")
    assert outcome(tmp_path / "parts") == outcome(whole)


@pytest.mark.parametrize("key", ["world_size", "sharding", "began", "seed", "format"])
def test_a_checkpoint_of_another_number_of_ranks_or_kind_is_left_out_and_it_says_why(key, stopped):
    home, go_on = stopped
    for path in checkpoints.list_checkpoints(home):
        agreed = json.loads((path / "checkpoint.json").read_text())
        (path / "checkpoint.json").write_text(json.dumps(agreed | {key: 4}))
        (path / "complete").write_text(
            hashlib.sha256((path / "checkpoint.json").read_bytes()).hexdigest()
        )
    said = go_on()
    assert f"{key} was 4, is " in said and "goes on from step 0" in said


def test_a_finished_round_keeps_no_checkpoint_and_one_in_training_the_last_two(
    search, die, monkeypatch, tmp_path
):
    seen, save = [], checkpoints.save

    def watched(net, home, *more):
        save(net, home, *more)
        seen.append([path.name for path in checkpoints.list_checkpoints(home)])

    monkeypatch.setattr(checkpoints, "save", watched)
    out = search(max_steps=4, save_steps=1, target_sparsity=0)
    assert seen == [
        ["checkpoint-1"],
        *[[f"checkpoint-{n}", f"checkpoint-{n - 1}"] for n in (2, 3, 4)],
    ]
    assert not list(out.rglob("*checkpoint*"))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_clock_that_steps_back_costs_no_checkpoint(keep, stopped, search, die, tmp_path):
    """Those of before lie an hour ahead, as after a correction of the clock, or on another node."""
    home, _ = stopped
    for path in home.rglob("*"):
        os.utime(path, (path.stat().st_mtime + 3600,) * 2)
    flags = dict(max_steps=5, save_steps=0, save_total_limit=keep, target_sparsity=0.1)
    die(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=r"checkpoint-5 is written"):
        search(output_dir=tmp_path / "parts", **flags)
    assert (home / "checkpoint-5/complete").is_file()
    assert [path.name for path in checkpoints.list_checkpoints(home)] == [
        "checkpoint-5",
        "checkpoint-4",
    ][:keep]
    whole = search(output_dir=tmp_path / "whole", **flags)
    assert outcome(search(output_dir=tmp_path / "parts", **flags)) == outcome(whole)


def test_a_checkpoint_of_a_later_step_neither_outlives_the_one_just_written_nor_is_lost(
    stopped, monkeypatch
):
    """One of other ranks, which this run cannot use, stays for them until the round is complete."""
    home, go_on = stopped
    shutil.copytree(home / "checkpoint-4", home / "checkpoint-9")
    seen, save = [], checkpoints.save

    def watched(net, home, *more):
        save(net, home, *more)
        seen.append([path.name for path in checkpoints.list_checkpoints(home)])

    monkeypatch.setattr(checkpoints, "save", watched)
    go_on(save_steps=1, save_total_limit=1)
    assert seen[0] == ["checkpoint-9", "checkpoint-5"] and not checkpoints.list_checkpoints(home)


def test_sigterm_writes_a_checkpoint_and_stops(search, die, tmp_path):
    flags = dict(max_steps=5, save_steps=0, target_sparsity=0.1)
    whole = search(output_dir=tmp_path / "whole", **flags)
    die(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=r"round 00 was asked to stop: .*checkpoint-3 is written"):
        search(output_dir=tmp_path / "parts", **flags)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    die(1000)
    assert outcome(search(output_dir=tmp_path / "parts", **flags)) == outcome(whole)


def test_sigusr1_writes_a_checkpoint_and_the_training_goes_on(search, die, monkeypatch, tmp_path):
    saved, save = [], checkpoints.save
    monkeypatch.setattr(
        checkpoints, "save", lambda net, *more: (saved.append(net.step), save(net, *more))
    )
    die(3, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    out = search(max_steps=5, save_steps=0, target_sparsity=0.1)
    assert saved == [3] and (out / "complete").exists()


def test_a_signal_is_heeded_during_evaluation(search, monkeypatch, tmp_path):
    flags = dict(max_steps=4, save_steps=0, target_sparsity=0, per_device_eval_batch_size=4)
    whole = search(output_dir=tmp_path / "whole", **flags)
    select_rows, calls = batches.select_rows, []

    def watched(rows, numbers):
        calls.append(numbers)
        if len(calls) == 6:  # four batches of training, and the second of five
            os.kill(os.getpid(), signal.SIGTERM)
        return select_rows(rows, numbers)

    for module in (batches, evaluation):
        monkeypatch.setattr(module, "select_rows", watched)
    monkeypatch.setattr(networks, "check_forward", lambda task, args: None)  # it selects rows too
    with pytest.raises(Stopped, match="checkpoint-4 is written"):
        search(output_dir=tmp_path / "parts", **flags)
    assert len(calls) == 6
    assert outcome(search(output_dir=tmp_path / "parts", **flags)) == outcome(whole)


def test_a_full_disk_stops_the_run_with_what_it_had_and_it_goes_on_once_there_is_room(
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
    with pytest.raises(
        Stopped, match=r"checkpoint-4 could not be written .*No space left.*free some space"
    ):
        search(output_dir=tmp_path / "parts", **flags)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "parts/rounds/00")] == [
        "checkpoint-2"
    ]
    monkeypatch.setattr(checkpoints, "save_file", save)
    assert outcome(search(output_dir=tmp_path / "parts", **flags)) == outcome(whole)
    assert not list((tmp_path / "parts").rglob("*.tmp"))


@pytest.fixture
def written(small, tmp_path):
    """A network two steps into a round, its checkpoint, and a function that restarts it."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    args = parse(small())
    net = networks.prepare(environment.make_accelerator(args), registry.load_task(args), args)
    theta, masks = (
        net.initial,
        {name: torch.rand(piece.shape) > 0.5 for name, piece in net.targets.items()},
    )

    def restart() -> None:
        networks.restart(net, theta, masks, 0, 1)

    restart()
    loop.train(net, 2, lambda step: 0.01, lambda *_: None)
    checkpoints.save(net, tmp_path / "home", {}, 1.5, 1)
    return net, tmp_path / "home/checkpoint-2", restart


def standing(net) -> list:
    scale = [repr(sorted(net.engine.loss_scale().items())), net.step, torch.get_rng_state()]
    return [*scale, *(value for _, value in sorted(net.engine.state().items()))]


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
        before = standing(net)
        assert (checkpoints.resume(net, path.parent) is None) or broken == whole
        if broken != whole:
            pairs = zip(before, standing(net), strict=True)
            assert all(
                torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs
            )
    finally:
        victim.write_bytes(whole)


def test_a_checkpoint_that_was_renamed_is_refused(written):
    net, path, restart = written
    shutil.copytree(path, path.with_name("checkpoint-3"))
    restart()
    assert checkpoints.resume(net, path.parent) is not None and net.step == 2

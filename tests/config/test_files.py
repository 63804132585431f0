"""Files and directories are complete or absent, and those of others are never changed."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from lth_scale import report, speed, study, ticket
from lth_scale.config import directories, files, manifest, run_files
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.shipping import hub
from lth_scale.shipping.export.export import export
from lth_scale.shipping.speed.registry import EAGER
from lth_scale.tracking.run_directory import RunDirectory
from lth_scale.training import checkpoints, loop

TEXT = "precious"
FOREIGN = ".results.json.0123456789abcdef0123456789abcdef.tmp"  # as another run might have named it
NAMES = (
    *(".notes.tmp", ".x.1.tmp", FOREIGN, ".metrics.json.4711.tmp", "mine.safetensors", "notes.txt"),
    *("report.tmp", "checkpoint-old", "checkpoint-best", ".checkpoint-2.tmp/thesis.txt"),
    *("checkpoint-7/model.safetensors", "01-old/complete", "01-old/metrics.json"),
    *("00.bak/model.safetensors", "checkpoint-4.bak/complete", "checkpoint-8/complete"),
    *("checkpoint-8/checkpoint.json", ".files.mine", "model.bak/model.safetensors"),
    *(".cache.tmp/thesis.txt", "rank-0.safetensors", "round 01/complete"),
)


def plant(root: Path) -> dict[Path, int]:
    """Put foreign files into every directory below `root` and beside it; return them by inode."""
    planted = {}
    for directory in [root.parent, root, *(path for path in root.rglob("*") if path.is_dir())]:
        for name in NAMES:
            path = directory / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(TEXT)
                planted[path] = path.stat().st_ino
    return planted


def missing(planted: dict[Path, int]) -> list[str]:
    """The files that were deleted, replaced or changed."""
    return [
        str(path)
        for path, inode in planted.items()
        if not path.exists() or path.stat().st_ino != inode or path.read_text() != TEXT
    ]


class Killed(BaseException):
    """Stands for a kill, inside the process of the test."""


@pytest.fixture
def die(monkeypatch):
    """Raise Killed when the n-th optimizer step from now on begins."""
    step = loop.step_optimizer

    def at(number: int) -> None:
        left = iter(range(number - 1, -1, -1))

        def counted(net, rate):
            if next(left, None) == 0:
                raise Killed
            return step(net, rate)

        monkeypatch.setattr(loop, "step_optimizer", counted)

    return at


def test_searches_and_transfers_keep_the_files_of_others(search, transfer, die, tmp_path):
    """They are created before the run, in the middle of a round, and at the end."""
    flags = dict(
        save_steps=1,
        target_sparsity=0.2,
        rewind="none",
        control="random_mask",
        output_dir=tmp_path / "a/out",
    )
    (tmp_path / "a/out").mkdir(parents=True)
    planted = plant(tmp_path / "a/out")
    for steps in (3, 4, 6, 20):  # in rounds 00, 01 and 02, and never
        die(steps)
        try:
            search(**flags)
        except Killed:
            planted |= plant(tmp_path / "a/out")
    assert (tmp_path / "a/out/complete").is_file() and not missing(planted)
    assert checkpoints.list_checkpoints(tmp_path / "a/out/rounds/00") == []
    transferred = dict(
        ticket=tmp_path / "a/out", save_steps=1, keep_network=True, output_dir=tmp_path / "b/out"
    )
    for steps in (3, 6, 20):
        die(steps)
        try:
            transfer(1, 2, **transferred)
        except Killed:
            planted |= plant(tmp_path / "b/out")
    search(**flags)
    assert (tmp_path / "b/out/complete").is_file() and not missing(planted)


SHORT = (
    f"--repeats 4 --warmup 1 --batch_size 1 --sequence_length 8 --report_to none --backends {EAGER}"
)


def test_other_commands_keep_the_files_of_others(search, tmp_path, monkeypatch):
    run = search(target_sparsity=0.1)
    planted = plant(run)
    export(str(run), "csr", tmp_path / "exported/csr")
    hub.push(run, "user/name", dry_run=True)
    planted |= plant(tmp_path / "exported/csr")
    export(str(run), "csr", tmp_path / "exported/csr")
    file = tmp_path / "study.yaml"
    file.write_text(
        "flags: {preset: demo, max_steps: 1, max_train_samples: 32, max_eval_samples: 16, "
        "prune_rate: 0.5, "
        "report_to: none}\ntasks: [sst2]\nseeds: [1]\nsparsities: [0.5]\n"
    )
    for module, *argv in (
        (
            ticket,
            run,
            "--union",
            run / "rounds/00",
            "--output",
            tmp_path / "combined/ticket.safetensors",
        ),
        (speed, run, *SHORT.split(), "--output_dir", tmp_path / "speed/here"),
        (speed, run, *SHORT.split(), "--output_dir", tmp_path / "speed/here"),
    ):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, argv)])
        module.main()
        planted |= plant(tmp_path / "speed/here")
    (tmp_path / "grid").mkdir()
    planted |= plant(tmp_path / "grid")
    for again in range(2):
        monkeypatch.setattr(
            sys, "argv", ["study", str(file), "--output_dir", str(tmp_path / "grid")]
        )
        study.main()
        monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "grid"), "--report_to", "none"])
        report.main()
        if not again:
            planted |= plant(tmp_path / "grid")
    assert (tmp_path / "grid/report/report.html").is_file() and not missing(planted)


WRITTEN = """rounds theta.safetensors theta-100.safetensors figures complete mlflow.jsonl hub.json
    results.json controls arguments.json .lock"""


@pytest.mark.parametrize("name", WRITTEN.split())
def test_a_directory_with_a_file_that_a_run_would_write_is_refused(name, small, tmp_path):
    taken = tmp_path / "out" / name
    taken.parent.mkdir()
    taken.write_text("7 of mine")
    with pytest.raises(BadInput, match=rf"--output_dir .*: .*{name}.*use another directory"):
        RunDirectory.open(parse(small()))
    assert taken.read_text() == "7 of mine"


@pytest.mark.parametrize("name", ["results.json", "rounds", ".lock"])
def test_a_link_with_a_name_that_a_run_would_write_is_refused(name, small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=rf"holds {name}, which was not written by this run"):
        RunDirectory.open(parse(small()))


def test_unfinished_files_of_a_killed_run_are_deleted_but_not_behind_links_or_of_other_runs(
    tmp_path,
):
    ours, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (ours / "rounds/00/checkpoint-3").mkdir(parents=True)
    (ours / "nested/rounds/00").mkdir(parents=True)
    (elsewhere / "01").mkdir(parents=True)
    (ours / "seeds").symlink_to(elsewhere)
    directories.acquire(ours)
    left = [ours / "a", ours / "rounds/00/b", ours / "rounds/00/checkpoint-3/complete"]
    kept = [elsewhere / "01/c", ours / "nested/d", ours / "nested/rounds/00/e"]
    for path in (*left, *kept):
        mark = directories.HELD[ours.resolve()].mark
        path.with_name(f".{path.name}.{mark}.tmp").write_text("half")
    directories.release(ours)
    directories.acquire(ours)
    run_files.delete_unfinished(ours)
    found = {path.name[1] for path in [*ours.rglob(".*.tmp"), *elsewhere.rglob(".*.tmp")]}
    assert found == {"c", "d", "e"}
    directories.release(ours)


def test_a_live_run_inside_the_directory_of_another_continues(tmp_path):
    """The outer run deletes unfinished files while the inner one rewrites the same file."""
    script = (
        "import sys; from pathlib import Path; from lth_scale.config import directories, files\n"
        "home = Path(sys.argv[1]); directories.acquire(home)\n"
        "for n in range(10**9):\n"
        "    files.write_json(home / 'rounds/00/metrics.json', {'n': n})\n"
    )
    inner = tmp_path / "rounds/00"
    writer = subprocess.Popen([sys.executable, "-c", script, str(inner)], stderr=subprocess.PIPE)
    while not (inner / "rounds/00/metrics.json").exists():
        assert writer.poll() is None, writer.stderr.read()
    for _ in range(300):
        directories.acquire(tmp_path)
        run_files.delete_unfinished(tmp_path)
    assert writer.poll() is None
    writer.kill()
    writer.communicate()
    directories.release(tmp_path)


def test_an_unfinished_directory_does_not_replace_the_old_one(tmp_path):
    with manifest.listed_directory(tmp_path / "model") as folder:
        (folder / "a").write_text("old")
        (folder / "b").write_text("old")
    with pytest.raises(RuntimeError), manifest.listed_directory(tmp_path / "model") as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "model/a").read_text() == "old"
    (tmp_path / "model/mine").write_text(TEXT)
    with manifest.listed_directory(tmp_path / "model") as folder:
        (folder / "a").write_text("newer")
    assert (tmp_path / "model/a").read_text() == "newer" and (
        tmp_path / "model/mine"
    ).read_text() == TEXT
    assert not (tmp_path / "model/b").exists()
    manifest.remove_listed(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]


def test_a_new_directory_replaces_nothing(tmp_path):
    (tmp_path / "new").mkdir()
    with directories.new_directory(tmp_path / "new") as folder:
        (folder / "a").write_text("ours")
        (tmp_path / "new/b").write_text(TEXT)  # between the check and the end
        with pytest.raises(OSError, match="not empty"):
            os.rename(folder, tmp_path / "new")
        (tmp_path / "new/b").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    with (
        pytest.raises(OSError, match="not empty"),
        directories.new_directory(tmp_path / "new") as folder,
    ):
        (folder / "a").write_text("other")
    assert (tmp_path / "new/a").read_text() == "ours" and len([*tmp_path.iterdir()]) == 1


def test_an_abandoned_temporary_directory_is_deleted_and_that_of_a_live_process_is_kept(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from lth_scale.config import directories\n"
        "with directories.new_directory(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text(''); print(folder, flush=True); time.sleep(600)\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "new"], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    halves = [Path(writer.stdout.readline().strip()) for writer in writers]
    os.kill(writers[0].pid, signal.SIGKILL)
    writers[0].wait()
    shutil.copytree(halves[0], tmp_path / ".other.0123456789abcdef0123456789abcdef.tmp")
    (tmp_path / ".new.0123456789abcdef0123456789abcdef.tmp").mkdir()
    (tmp_path / ".new.0123456789abcdef0123456789abcdef.tmp/thesis").write_text(TEXT)
    with directories.new_directory(tmp_path / "new"):
        pass
    assert [half.exists() for half in halves] == [False, True]
    assert (tmp_path / ".other.0123456789abcdef0123456789abcdef.tmp/half").exists()
    assert (tmp_path / ".new.0123456789abcdef0123456789abcdef.tmp/thesis").exists()
    writers[1].kill()
    writers[1].wait()


def test_an_abandoned_temporary_file_is_deleted_and_that_of_a_live_process_is_kept(tmp_path):
    script = (
        "import os, sys, time; from pathlib import Path; from lth_scale.config import files\n"
        "os.fsync = lambda handle: (print(flush=True), time.sleep(600))\n"
        "files.write_bytes(Path(sys.argv[1]), b'half')\n"
    )
    writers, halves = [], [tmp_path / FOREIGN]
    halves[0].write_text(TEXT)
    for _ in range(2):
        command = [sys.executable, "-c", script, tmp_path / "study.json"]
        writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        writers[-1].stdout.readline()
        halves += {*tmp_path.iterdir()} - {*halves}
    os.kill(writers[0].pid, signal.SIGKILL)
    writers[0].wait()
    files.write_bytes(tmp_path / "study.json", b"whole")
    assert [half.exists() for half in halves] == [True, False, True]
    writers[1].kill()
    writers[1].wait()
    files.write_bytes(tmp_path / "study.json", b"whole")
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"study.json", FOREIGN}


def test_a_report_replaces_only_its_own_files(tmp_path):
    contents, sign = (
        {"report.html": b"<html><title>Report: x", "a.png": b"1"},
        ("report.html", b"<html><title>Report: "),
    )
    manifest.check_listed(tmp_path, contents, sign)
    manifest.write_listed(tmp_path, contents)
    manifest.check_listed(tmp_path, contents, sign)
    (tmp_path / "b.png").write_text(TEXT)
    with pytest.raises(OSError, match=r"b\.png already exists"):
        manifest.check_listed(tmp_path, {**contents, "b.png": b"2"}, sign)
    (tmp_path / manifest.LISTING).unlink()  # as in versions without listings
    manifest.check_listed(tmp_path, contents, sign)
    (tmp_path / "report.html").write_text("<html>mine")
    with pytest.raises(OSError, match=r"a\.png already exists"):
        manifest.check_listed(tmp_path, contents, sign)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        [1, float("inf")],
        {"eval": {"pearson": numpy.float64("nan"), "loss": (-math.inf, 0.5)}},
    ],
)
def test_json_has_no_nan_and_no_infinity(value, tmp_path):
    files.write_json(tmp_path / "results.json", value)
    held = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert held == files.finite(value) and "null" in (tmp_path / "results.json").read_text()


def test_finite_numbers_are_written_unchanged():
    value = {"a": [0.1, -1e300, 5e-324, True, None, "NaN"], "b": {"c": 10**30}}
    assert json.loads(files.as_json(value)) == value

"""Progress bars on a terminal and lines in a log file, with the time left; the final table."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lth_scale.science import summary
from lth_scale.tracking import console
from lth_scale.tracking.console import ProgressBars, Timer, format_duration
from lth_scale.tracking.stages import Stage

TINY = [
    *("--task", "mlm", "--preset", "demo", "--max_steps", "2", "--max_train_samples", "64"),
    *("--max_eval_samples", "16", "--target_sparsity", "0.1", "--control", "none"),
    *("--report_to", "none"),
]
LINE = re.compile(
    r"round 0\d · \d+ %: step [12] of 2"
    r"(; (\d+:\d\d left|evaluating), \d+:\d\d left in all( without evaluation)?)?"
)
END = re.compile(r"round 0\d · \d+ %: accuracy [\d.]+, loss [\d.]+, [\d.]+ s")


def drive(
    timer: Timer, now: float, *, first: int, total: int, step: float, evaluation: float
) -> float:
    """Train a stage from step `first` on, which takes a minute, and evaluate it; return the end."""
    timer.start(total)
    now += 60
    for number in range(first, total + 1):
        timer.record(number, now)
        now += step if number < total else evaluation
    timer.end(total, now)
    return now


def test_the_time_left_counts_the_steps_and_evaluations_of_all_rounds_to_come():
    timer = Timer(stages=4)
    now = drive(timer, 0.0, first=1, total=10, step=2, evaluation=30)
    timer.start(10)
    for number in range(1, 11):
        timer.record(number, now + 2 * number)
        stage = (10 - number) * 2 + 30
        assert timer.remaining() == pytest.approx((stage, stage + 2 * (10 * 2 + 30)))


def test_no_time_is_estimated_before_a_step_is_timed():
    timer = Timer(stages=2)
    timer.start(100)
    assert timer.remaining() is None
    timer.record(1, 60.0)
    assert timer.remaining() is None  # loading came before it
    timer.record(2, 61.0)
    assert timer.remaining() == pytest.approx((98, 198))


def test_steps_done_before_a_stop_do_not_make_the_rest_look_fast():
    """A search of 10 rounds continues in its ninth, at step 500 of 1,000."""
    timer = Timer(stages=2)
    timer.start(1000)
    for number in range(501, 511):
        timer.record(number, 100.0 + number)
    assert timer.remaining() == pytest.approx((490, 490 + 1000))


def test_later_rounds_are_as_long_as_the_last_one():
    """Round 0 is longer with a rewind point or with --early_bird."""
    timer = Timer(stages=3)
    now = drive(timer, 0.0, first=1, total=100, step=1, evaluation=0)
    timer.end(90, drive(timer, now, first=11, total=100, step=1, evaluation=0))
    timer.stages = 3
    timer.start(100)
    timer.record(11, 0.0)
    assert timer.remaining() == pytest.approx((89, 89 + 2 * 90))


@pytest.mark.parametrize(
    ("seconds", "least", "most"), [(0.01, 0, 0), (3.6, 10, 10), (60, 100, 110)]
)
def test_a_log_file_has_ten_lines_a_round_or_six_an_hour(seconds, least, most, monkeypatch, capsys):
    """A round of 1,000 steps that takes ten seconds, an hour, or 17 hours."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    bars = ProgressBars(rounds=4, done=1)
    bars.start(Stage.round(1), 0.1, 1000, resumed=False)
    for step in range(1, 1001):
        now[0] += seconds
        bars.step(step, 0.4118 if step % 10 == 0 else None)
    lines = capsys.readouterr().err.splitlines()
    assert least <= len(lines) <= most
    if seconds == 3.6:
        assert lines[2] == (
            "round 01 · 10 %: step 300 of 1,000, loss 0.4118; 42:00 left, 2:42:00 left in all "
            "without evaluation"
        )
        assert lines[-1].startswith(
            "round 01 · 10 %: step 1,000 of 1,000, loss 0.4118; evaluating, 2:00:00 left in"
        )


def test_times_are_hours_minutes_and_seconds():
    texts = {0.4: "0:00", 59.6: "1:00", 750: "12:30", 6000: "1:40:00", 360_000: "100:00:00"}
    assert {seconds: format_duration(seconds) for seconds in texts} == texts


def test_two_ranks_write_one_log_without_control_characters(tmp_path):
    """Even with FORCE_COLOR and a line per step; the table is on stdout, a warning appears once."""
    script = tmp_path / "often.py"
    script.write_text(
        "from lth_scale import cli\n"
        "from lth_scale.tracking import console\n"
        "console.MIN_INTERVAL = console.MAX_INTERVAL = 0.0\n"
        "cli.main()\n"
    )
    launch = [
        *("launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
    ]
    flags = [*TINY, "--max_seq_length", "1000", "--output_dir", tmp_path / "out"]
    done = subprocess.run(
        [Path(sys.executable).with_name("accelerate"), *launch, script, "imp", *flags],
        capture_output=True,
        text=True,
        timeout=400,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "FORCE_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stderr + done.stdout)
    lines = [line for line in done.stderr.splitlines() if line.startswith("round ")]
    assert len([line for line in lines if LINE.fullmatch(line)]) == 4  # two rounds of two steps
    assert len([line for line in lines if END.fullmatch(line)]) == 2 and len(lines) == 6
    assert done.stderr.count("--max_seq_length 1000 is more than the model takes") == 1
    assert done.stdout.count("| round |") == 1 and "step" not in done.stdout


def on_a_terminal(*command: str) -> tuple[int, str, str]:
    """Run a command with stderr on a terminal of 80 columns; return exit code, stdout, stderr."""
    ours, theirs = pty.openpty()
    size = {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=os.environ | size,
    )
    os.close(theirs)
    seen, until = b"", time.monotonic() + 300
    while time.monotonic() < until and select.select([ours], [], [], 300)[0]:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    assert child.stdout
    return child.wait(10), child.stdout.read(), seen.decode()


def test_a_terminal_has_two_bars_with_the_time_left_and_gets_its_cursor_back(tmp_path):
    """The table goes to stdout, alone and plain."""
    code, out, err = on_a_terminal(
        sys.executable, "-m", "lth_scale.imp", *TINY, "--output_dir", str(tmp_path / "out")
    )
    assert code == 0, err
    shown = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err))
    assert max(map(len, shown)) <= 80
    assert any(re.fullmatch(r"rounds +[━╸╺]+ 0/2 \d+:\d\d left *", line) for line in shown)
    assert any(
        re.fullmatch(r"  round 01 · 10 % +[━╸╺]+ 1/2 \d+:\d\d left *", line) for line in shown
    )
    assert len([line for line in shown if END.fullmatch(line.strip())]) == 2
    assert err.rfind("\x1b[?25h") > err.rfind("\x1b[?25l") >= 0
    assert "\x1b" not in out and out.strip().startswith("| round |") and "rounds" not in out


def test_an_error_gives_the_cursor_back():
    code = (
        "from lth_scale.tracking.console import ProgressBars\n"
        "bars = ProgressBars(2, 0)\n"
        "raise SystemExit(3)"
    )
    returned, _, err = on_a_terminal(sys.executable, "-c", code)
    assert returned == 3 and err.rfind("\x1b[?25h") > err.rfind("\x1b[?25l") >= 0


def test_the_table_is_markdown_whatever_the_width_of_its_cells(monkeypatch):
    """Nothing is cut or wrapped, even in a terminal of 40 columns, and the columns are aligned."""
    monkeypatch.setenv("COLUMNS", "40")
    scores = {"accuracy": 0.84, "accuracy_mismatched": 0.85, "f1": 0.9, "loss": 123456.789}
    row = {"sparsity": 0.7, "pruned": 237_823_590, "prunable": 339_738_624, "threshold": 1.5e-2}
    lines = summary.results_table(
        [{**row, "eval": scores, "round": k, "seconds": 10.0**k} for k in range(6)]
    ).splitlines()
    assert len(lines) == 8 and len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["round", "sparsity", "pruned weights", "threshold", *scores, "seconds"]
    assert set(lines[1]) == {"|", "-"}
    assert cells[7] == [
        "5",
        "70.00 %",
        "237,823,590 / 339,738,624",
        "1.500e-02",
        "0.8400",
        "0.8500",
        "0.9000",
        "123456.7890",
        "100000.0",
    ]

"""--task package.module:function."""

import json

import pytest
from conftest import sentence

from lth_scale import Ticket, imp
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse

MODULE = """
from dataclasses import replace
from lth_scale.tasks.text_classification import load_text_classification

def load(args):
    return load_text_classification(replace(args, label_column_name="topic"))

def nothing(args):
    return 1
"""


@pytest.fixture
def run(tmp_path, tiny_bert, monkeypatch):
    (tmp_path / "our_tasks.py").write_text(MODULE)
    rows = [{"text": sentence(i), "topic": "ab"[i % 2]} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)

    def go(name):
        flags = f"--task {name} --train_file rows.jsonl --validation_file rows.jsonl"
        more = "--max_steps 1 --target_sparsity 0.1 --report_to none --output_dir out"
        imp.run(parse([*flags.split(), *more.split(), "--model_name_or_path", str(tiny_bert)]))

    return go


def test_a_function_of_a_module_makes_a_task(run, tmp_path):
    run("our_tasks:load")
    ticket = Ticket.load(tmp_path / "out/ticket.safetensors")
    assert ticket.task == "our_tasks:load"
    rows = json.loads((tmp_path / "out/results.json").read_text())
    assert [*rows[0]["eval"]] == ["accuracy", "macro_f1", "loss"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("our_tasks:lode", "has no attribute 'lode'"),
        ("no_such_module:load", "No module named"),
        ("our_tasks:nothing", "returns a int without"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(name, expected, run):
    with pytest.raises(BadInput) as refusal:
        run(name)
    message = str(refusal.value)
    assert message.startswith(f"--task {name}: ") and expected in message and "\n" not in message

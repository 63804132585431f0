"""SECURITY.md: no pickle, no remote code, no secret written, nothing that others may write."""

import ast
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from lth_scale import Ticket, imp, transfer
from lth_scale.config import directories, files
from lth_scale.config.exit_codes import exit_on_bad_input

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for part in ("lth_scale", "tests", "benchmarks") for path in (ROOT / part).rglob("*.py")
)
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pandas.read_pickle",
}
SECRET = "pl4nted-s3cret"


def forbidden(tree: ast.AST) -> list[str]:
    """What must not be in a source: ways in which data becomes code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"import {name}" for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        name, options = (
            ast.unparse(node.func),
            {option.arg: ast.unparse(option.value) for option in node.keywords},
        )
        if name in CALLS:
            found.append(name)
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append("torch.load")
        wrong = {
            "allow_pickle": "False",
            "shell": "False",
            "trust_remote_code": "False",
            "use_safetensors": "True",
        }
        found += [
            f"{key}={options[key]}"
            for key in wrong.keys() & options.keys()
            if options[key] != wrong[key]
        ]
    return found


def test_no_source_turns_data_into_code():
    assert len(SOURCES) > 50
    assert {
        path: found for path in SOURCES if (found := forbidden(ast.parse(path.read_text())))
    } == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "eval(x)",
        "numpy.load(x, allow_pickle=True)",
        "yaml.load(x, Loader)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "f(use_safetensors=None)",
    ],
)
def test_the_check_for_unsafe_sources_finds_them(source):
    assert forbidden(ast.parse(source))


def test_every_model_is_loaded_without_remote_code_and_from_safetensors():
    calls = [
        (ast.unparse(node.func), ast.unparse(node))
        for path in SOURCES
        if path.parts[-3:-1] == ("lth_scale", "tasks")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained"
    ]
    calls = [
        (func, call) for func, call in calls if "from_pretrained(None, " not in call
    ]  # reads nothing
    assert len(calls) == 3 and all(
        "trust_remote_code=False" in call or "**options" in call for _, call in calls
    )
    assert sum("use_safetensors=True" in call for _, call in calls) == 1


class Trap:
    """Unpickled, it makes a directory."""

    def __init__(self, directory: Path):
        self.directory = directory

    def __reduce__(self):
        return os.mkdir, (str(self.directory),)


@pytest.fixture
def run(small, capsys, monkeypatch, tmp_path):
    """Run a command in this process, with its files below `tmp_path`: exit code, stdout, stderr."""

    def go(*argv, command=imp, **overrides) -> tuple[int, str, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["command", *small(**overrides), *argv])
        with pytest.raises(SystemExit) as stop:
            exit_on_bad_input(command.main)
        return (stop.value.code, *capsys.readouterr())

    return go


def index_of(*parts: str) -> str:
    return json.dumps(
        {"metadata": {}, "weight_map": {f"weight.{i}": part for i, part in enumerate(parts)}}
    )


@pytest.mark.parametrize(
    "index", [None, "pytorch_model.bin", "../model/pytorch_model.bin", "/etc/passwd"]
)
def test_a_pickle_is_refused_and_not_run(index, run, tiny_bert, tmp_path):
    directory, trap = tmp_path / "model", tmp_path / "sprung"
    shutil.copytree(tiny_bert, directory)
    (directory / "model.safetensors").unlink()
    torch.save({"weight": Trap(trap)}, directory / "pytorch_model.bin")
    if index:
        (directory / "model.safetensors.index.json").write_text(index_of(index))
    code, out, err = run(model_name_or_path=directory)
    assert (code, out, err.count("\n")) == (
        2,
        "",
        1,
    ) and f"--model_name_or_path {directory}" in err, err
    assert not index or f"names '{index}'" in err
    assert not trap.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["bert", "evil"])
def test_code_in_a_model_directory_is_not_run(kind, run, tiny_bert, tmp_path):
    directory, trap = tmp_path / "model", tmp_path / "sprung"
    shutil.copytree(tiny_bert, directory)
    (directory / "evil.py").write_text(f"import os\nos.mkdir({str(trap)!r})\n")
    for name, classes in (
        (
            "config.json",
            {
                f"Auto{each}": "evil.Evil"
                for each in ("Config", "Model", "ModelForSequenceClassification")
            },
        ),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    ):
        content = json.loads((directory / name).read_text())
        (directory / name).write_text(
            json.dumps({**content, "auto_map": classes, "model_type": kind})
        )
    code, out, err = run(model_name_or_path=directory, max_steps=0)
    assert not trap.exists()
    if kind == "bert":  # our own classes load it
        assert code == 0
    else:
        assert (code, out, err.count("\n")) == (
            2,
            "",
            1,
        ) and f"--model_name_or_path {directory}" in err, err


def leaks(directory: Path, *texts: str) -> list[str]:
    there = [
        str(path)
        for path in directory.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    return there + [text for text in texts if SECRET in text]


ADDRESSES = [
    f"https://me:{SECRET}@127.0.0.1:9/a/b",
    f"https://me:{SECRET}/x#y@127.0.0.1:9/a/b",
    f"https://127.0.0.1:9/a/b?user=me&password={SECRET}",
    f"postgresql://me:12 {SECRET}@127.0.0.1:9/a/b",
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("flag", ["model_name_or_path", "dataset_path", "ticket", "dense"])
def test_a_password_in_a_flag_is_not_printed(flag, address, run, tmp_path):
    code, out, err = run(**{flag: address})
    assert code == 2 and f"--{flag} {address.partition(':')[0]}://127.0.0.1:9" in err
    assert not leaks(tmp_path, out, err)


@pytest.mark.parametrize("store", [*ADDRESSES, f"postgresql:/me:{SECRET}@h/db", f"me:{SECRET}@h"])
def test_the_password_of_an_unusable_store_is_not_printed(store, run, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr("lth_scale.tracking.mlflow.sender.PATIENCE", 0.5)
    code, out, err = run(report_to="mlflow", max_steps=0, run_name=f"{store} at token={SECRET}")
    assert (code, "accepts no records" in err) in ((0, True), (2, False)), err
    assert not leaks(tmp_path, out, err)


def test_a_password_in_a_traceback_or_a_library_log_is_not_printed(run, monkeypatch, tmp_path):
    def fail(args):
        logging.getLogger("other").error("retrying %s", ADDRESSES[1])
        raise RuntimeError(f"cannot reach {ADDRESSES[1]}: password={SECRET}")

    monkeypatch.setattr(imp.RunDirectory, "open", fail)
    code, out, err = run()
    assert (
        code == 1
        and "Traceback" in err
        and "RuntimeError: cannot reach https://127.0.0.1:9/a/b" in err
    )
    assert not leaks(tmp_path, out, err)


TWICE = """
import os, sys
from lth_scale import imp
from lth_scale.config.exit_codes import exit_on_bad_input
from lth_scale.tracking.mlflow import sender
sender.PATIENCE = 1.0
for store in sys.argv.pop().split():
    os.environ["MLFLOW_TRACKING_URI"] = store
    try:
        exit_on_bad_input(imp.main)
    except SystemExit as stop:
        assert not stop.code
    sys.argv += ["--seed", "43", "--output_dir", os.environ["HF_HOME"] + "/second"]
"""


def test_secrets_of_the_environment_are_never_written(small, tmp_path):
    """Two searches: into a store of its own, and for a server with a password that is not there."""
    secrets = dict.fromkeys(
        ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"), SECRET
    )
    stores = f"sqlite:///{tmp_path}/mlflow.db http://me:{SECRET}@127.0.0.1:9"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            TWICE,
            *small(report_to="mlflow", max_steps=1, target_sparsity=0.1),
            stores,
        ],
        env={**os.environ, **secrets, "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len([*tmp_path.rglob("results.json")]) == 2 and (tmp_path / "mlflow.db").is_file()
    assert "records are waiting in" in done.stderr, done.stderr
    assert not leaks(tmp_path, done.stdout, done.stderr)


@pytest.fixture(params=[0, 0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): stat.S_IMODE(path.lstat().st_mode)
        for path in directory.rglob("*")
    }


def test_files_are_writable_by_their_owner_only_and_a_stricter_umask_is_kept(umask, tmp_path):
    files.write_bytes(tmp_path / "a/b/file", b"x")
    with directories.new_directory(tmp_path / "c/made") as made:
        (made / "deep").mkdir()
        (made / "deep/file").write_text("x")
    with directories.exclusive(tmp_path / "d/lock"):
        pass
    made = modes(tmp_path)
    assert made["a/b/file"] == 0o644 & ~umask and made["a"] == made["a/b"] == 0o755 & ~umask
    assert not [
        path for path, mode in made.items() if mode & (0o022 | umask) and not path.endswith(".lock")
    ], made


def test_no_command_leaves_files_that_others_can_write(run, umask, tmp_path):
    code, _, err = run(
        output_dir=tmp_path / "runs/mine", report_to="mlflow", max_steps=1, target_sparsity=0.1
    )
    assert code == 0, err
    made = modes(tmp_path)
    assert "runs/mine/rounds/01/model/model.safetensors" in made and "runs/mlflow.db" in made
    assert not [path for path, mode in made.items() if mode & (0o022 | umask)], made


@pytest.mark.parametrize(
    "bad", ["\x1b", "\x7f", "\x9b", "\u202e", "\u2028", "\ud800", "\U000e0001"]
)
def test_terminal_control_characters_are_escaped_in_json(bad, tmp_path):
    files.write_json(tmp_path / "a.json", {"é": f"θ{bad}"})
    text = (tmp_path / "a.json").read_text()
    assert bad not in text and "é" in text and "θ" in text and json.loads(text) == {"é": f"θ{bad}"}


@pytest.mark.parametrize("name", ["unfinished", ".lock"])
def test_a_planted_link_is_not_followed(name, tmp_path):
    if name == "unfinished":
        directories.acquire(tmp_path)
    link = directories.temporary(tmp_path / "file") if name == "unfinished" else tmp_path / name
    link.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"):
        files.write_bytes(tmp_path / "file", b"x") if name == "unfinished" else directories.acquire(
            tmp_path
        )
    assert not (tmp_path / "precious").exists()


def test_a_ticket_of_a_local_model_leads_to_its_directory(run, search, tiny_bert, tmp_path):
    found = search(max_steps=1, target_sparsity=0.1)
    assert Ticket.load(found / "ticket.safetensors").base_model == str(tiny_bert)
    given = {"ticket": found, "model_name_or_path": None, "target_sparsity": None, "max_steps": 1}
    assert run(command=transfer, output_dir=tmp_path / "new", **given)[0] == 0


def test_no_printed_or_documented_command_listens_on_the_network(tmp_path):
    from lth_scale.science.summary import how_to_open_mlflow

    (tmp_path / "mlflow.json").write_text(
        json.dumps({"store": "sqlite:///x/mlflow.db", "experiment": "1"})
    )
    assert "--host 127.0.0.1 " in how_to_open_mlflow(tmp_path / "mlflow.json")[0]
    texts = [
        *SOURCES,
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
    hosts = {
        host
        for path in texts
        for host in re.findall(r"mlflow[^\n]*--host[ =]([\d.]+)", path.read_text())
    }
    assert hosts == {"127.0.0.1"}

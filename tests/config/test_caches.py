"""Caches that cannot be written are replaced, with one line of warning, or named in an error."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lth_scale.config import caches, errors, startup

EVERY = (*caches.DATA, *caches.COMPILERS, "MPLCONFIGDIR", "TORCH_EXTENSIONS_DIR")
VARIABLES = (*EVERY, "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")


@pytest.fixture
def ensure_writable(tmp_path, monkeypatch):
    """`caches.ensure_writable` as in a new process, with HOME and TMPDIR below `tmp_path`."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set is unset afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOGNAME", "somebody")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "file").write_text("mine")
    return caches.ensure_writable.__wrapped__


@pytest.mark.parametrize("name", EVERY)
def test_a_cache_in_whose_place_a_file_lies_is_replaced_in_a_line_that_names_it(
    name, ensure_writable, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv(name, str(tmp_path / "file"))
    ensure_writable(*EVERY)
    instead = Path(os.environ[name])
    assert instead.is_relative_to(tmp_path / f"tmp/lth_scale-{os.getuid()}")
    (line,) = caplog.messages
    assert f"{name} {tmp_path}/file (" in line and str(instead.parent) in line and "\n" not in line
    assert (tmp_path / "file").read_text() == "mine"
    assert not {*EVERY} - {name} & os.environ.keys()


@pytest.mark.parametrize(
    ("name", "place"),
    [("HF_HOME", "file"), ("XDG_CACHE_HOME", "file/below"), ("HOME", "/proc/nothing")],
)
def test_what_other_variables_lead_to_is_replaced_in_one_line_too(
    name, place, ensure_writable, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv(name, str(tmp_path / place))
    ensure_writable(*caches.DATA)
    (line,) = caplog.messages
    assert all(each in line and "lth_scale-" in os.environ[each] for each in caches.DATA)


def test_caches_that_can_be_written_are_let_be_and_nothing_is_made(
    ensure_writable, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "sp ace's ü/datasets"))
    ensure_writable(*EVERY)
    assert caplog.messages == [] and os.environ["HF_DATASETS_CACHE"].endswith("datasets")
    assert not (tmp_path / "home").exists() and not any((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("place", ["file", "nothing/here", "file/below"])
def test_a_temporary_directory_that_cannot_be_used_is_said(
    place, ensure_writable, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path / place))
    ensure_writable()
    (line,) = caplog.messages
    assert f"TMPDIR {tmp_path}/{place}" in line and os.environ["TMPDIR"] == str(tmp_path / "tmp")


def test_a_spare_directory_of_somebody_else_is_not_used(ensure_writable, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    (tmp_path / f"tmp/lth_scale-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"tmp/lth_scale-{os.getuid()}").chmod(0o777)
    monkeypatch.setattr(caches, "ensure_writable", ensure_writable)
    with (
        pytest.raises(errors.BadInput, match=r"^TMPDIR: .* is not this user's alone; set it to"),
        startup.first_imports(),
    ):
        pass


def test_a_link_in_the_place_of_the_spare_directory_is_not_followed(
    ensure_writable, tmp_path, monkeypatch
):
    (tmp_path / f"tmp/lth_scale-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        caches.fallback()


def test_a_user_without_a_home_makes_no_directory_called_tilde(
    ensure_writable, tmp_path, caplog, monkeypatch
):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("LOGNAME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    monkeypatch.chdir(tmp_path)
    ensure_writable(*EVERY)
    (line,) = caplog.messages
    assert line.startswith("HOME is not set") and os.environ["HOME"].startswith(
        str(tmp_path / "tmp")
    )
    assert os.environ["LOGNAME"] == str(os.getuid()) and not (tmp_path / "~").exists()


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_error_of_the_hubs_cache_names_it(wrapped, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    problem: Exception = PermissionError(13, "Permission denied", str(tmp_path / "hub/models--a"))
    if wrapped:
        problem.__cause__ = None
        outer = OSError("Check cache directory permissions")
        outer.__cause__ = problem
        problem = outer
    said = caches.hub_cache_problem(problem)
    assert said.startswith(
        f"HF_HUB_CACHE {tmp_path}/hub: cannot be written (Permission denied); set it"
    )
    assert caches.hub_cache_problem(PermissionError(13, "Permission denied", "/elsewhere")) == ""


NOBODY = """
import pwd, runpy, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
sys.argv[0] = "imp"
runpy.run_module("lth_scale.imp", run_name="__main__")
"""


def test_a_search_of_a_user_whom_nobody_knows_is_done(small, tmp_path):
    """As in a container with any user id: no HOME, no passwd entry; and a file where a cache is."""
    keep = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")
    }
    (tmp_path / "file").write_text("")
    settings = {"MPLCONFIGDIR": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    flags = small(max_steps=1, target_sparsity=0.1, output_dir="out")
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, *flags],
        cwd=tmp_path,
        env=keep | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/complete").is_file() and not (tmp_path / "~").exists()
    said = [line for line in done.stderr.splitlines() if "is used instead" in line]
    assert len(said) == 2 and said[0].startswith("HOME is not set") and "MPLCONFIGDIR" in said[1]

"""Caches that cannot be written are replaced with a warning, or named in an error."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lth_scale.config import errors, startup

EVERY = (*startup.DATA, *startup.COMPILERS, "MPLCONFIGDIR", "TORCH_EXTENSIONS_DIR")
VARIABLES = (*EVERY, "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")


@pytest.fixture
def ensure_writable(tmp_path, monkeypatch):
    """`startup.ensure_writable` as in a new process, with HOME and TMPDIR below `tmp_path`."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOGNAME", "somebody")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "file").write_text("mine")
    return startup.ensure_writable.__wrapped__


@pytest.mark.parametrize("name", EVERY)
def test_a_cache_whose_path_is_a_file_is_replaced_with_a_warning_that_names_it(
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
def test_caches_below_an_unwritable_directory_are_replaced_with_one_warning(
    name, place, ensure_writable, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv(name, str(tmp_path / place))
    ensure_writable(*startup.DATA)
    (line,) = caplog.messages
    assert all(each in line and "lth_scale-" in os.environ[each] for each in startup.DATA)


def test_writable_caches_are_kept_and_nothing_is_created(
    ensure_writable, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "sp ace's ü/datasets"))
    ensure_writable(*EVERY)
    assert caplog.messages == [] and os.environ["HF_DATASETS_CACHE"].endswith("datasets")
    assert not (tmp_path / "home").exists() and not any((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("place", ["file", "nothing/here", "file/below"])
def test_an_unusable_temporary_directory_is_named_in_a_warning(
    place, ensure_writable, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path / place))
    ensure_writable()
    (line,) = caplog.messages
    assert f"TMPDIR {tmp_path}/{place}" in line and os.environ["TMPDIR"] == str(tmp_path / "tmp")


def test_a_fallback_directory_that_others_can_write_is_refused(
    ensure_writable, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    (tmp_path / f"tmp/lth_scale-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"tmp/lth_scale-{os.getuid()}").chmod(0o777)
    monkeypatch.setattr(startup, "ensure_writable", ensure_writable)
    with (
        pytest.raises(errors.BadInput, match=r"^TMPDIR: .* is not this user's alone; set it to"),
        startup.first_imports(),
    ):
        pass


def test_a_link_named_as_the_fallback_directory_is_not_followed(
    ensure_writable, tmp_path, monkeypatch
):
    (tmp_path / f"tmp/lth_scale-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        startup.fallback()


def test_without_a_home_no_directory_named_tilde_is_created(
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
def test_an_error_from_the_cache_of_the_hub_names_its_variable(wrapped, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    problem: Exception = PermissionError(13, "Permission denied", str(tmp_path / "hub/models--a"))
    if wrapped:
        problem.__cause__ = None
        outer = OSError("Check cache directory permissions")
        outer.__cause__ = problem
        problem = outer
    said = startup.hub_cache_problem(problem)
    assert said.startswith(
        f"HF_HUB_CACHE {tmp_path}/hub: cannot be written (Permission denied); set it"
    )
    assert startup.hub_cache_problem(PermissionError(13, "Permission denied", "/elsewhere")) == ""


NOBODY = """
import pwd, runpy, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
sys.argv[0] = "imp"
runpy.run_module("lth_scale.imp", run_name="__main__")
"""


def test_a_search_runs_for_a_user_id_without_a_passwd_entry(small, tmp_path):
    """As in a container with any user id: no HOME, no passwd entry, a file in place of a cache."""
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

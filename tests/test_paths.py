"""Paths of any name: of output, data, model and ticket, in printed commands and in MLflow."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lth_scale import export, load_exported
from lth_scale.config.command import as_argv
from lth_scale.config.resolution import parse
from lth_scale.config.texts import quoted
from lth_scale.science import summary
from lth_scale.science.summary import how_to_open_mlflow
from lth_scale.tracking.run_directory import RunDirectory

NAMES = ["a b%20&c?d=1#e;f{b}[c]*~!", '-it\'s "q" $HOME `x` ünï' + "x" * 120]


def printed(label, out):
    """The path after a label, as a shell reads it."""
    line = re.search(rf"^{label} +(.*)$", out, re.MULTILINE)[1]
    done = subprocess.run(
        ["bash", "-c", f"test -e {line} && printf %s {line}"], capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.parametrize("name", NAMES, ids=["signs", "quotes"])
def test_commands_work_in_directories_with_any_name(
    name, search, transfer, tiny_bert, sst2_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = tmp_path / name
    for source, what in ((tiny_bert, "model"), (sst2_data, "data")):
        shutil.copytree(source, home / f"{what} {name}"[:100])
    places = {
        "model_name_or_path": home / f"model {name}"[:100],
        "dataset_path": home / f"data {name}"[:100],
    }
    flags = {"max_steps": 1, **places}
    out = search(**flags, target_sparsity=0.1, output_dir=home / "runs" / name, report_to="mlflow")
    said = capsys.readouterr().out
    assert printed("written to", said) == str(out)
    assert printed("the ticket", said) == str(out / "ticket.safetensors")
    words = shlex.split(how_to_open_mlflow(out / "mlflow.json")[0])
    client = MlflowClient(words[words.index("--backend-store-uri") + 1])
    assert (home / "runs/mlflow.db").is_file()
    runs = client.search_runs([client.get_experiment_by_name("lth_scale").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    (picture, _) = client.list_artifacts(parent.info.run_id, "figures")
    assert len(runs) == 3 and client.download_artifacts(parent.info.run_id, picture.path)
    assert (home / "runs/mlartifacts").is_dir()

    moved = transfer(1, **flags, ticket=out, output_dir=home / "runs/transfer")
    assert (moved / "complete").is_file()
    place = home / f"export {name}"[:100]
    said = export.summary(export.export(str(out), "compact", place), place)
    assert load_exported(str(place)) and said.splitlines()[0].endswith(f": {quoted(place)}")


def test_a_relative_path_that_begins_with_a_dash_is_printed_as_a_path(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "where it is").mkdir()
    (tmp_path / "-link").symlink_to("where it is")
    (tmp_path / "-link/ticket.safetensors").touch()
    monkeypatch.setattr(summary, "report", lambda record: "")
    args = parse(["--task", "sst2", "--preset", "demo", "--output_dir=-link"])
    summary.show(RunDirectory(Path(args.output_dir), args))
    assert printed("the ticket", capsys.readouterr().out) == "./-link/ticket.safetensors"


def test_a_study_in_a_directory_that_begins_with_a_dash_passes_readable_flags(tmp_path):
    flags = {
        "task": "sst2",
        "preset": "demo",
        "output_dir": Path("-a b/jobs/x"),
        "early_bird": True,
        "distill": False,
    }
    args = parse(as_argv(flags))
    assert args.output_dir == "-a b/jobs/x" and args.early_bird and not args.distill

"""Pushing to a Hub and pulling from it, over real HTTP, with a server that fails on demand."""

import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from hub_server import Fault, Repo, environment, serving
from huggingface_hub import ModelCard, constants
from huggingface_hub._eval_results import parse_eval_result_entries
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lth_scale import Ticket, load_exported
from lth_scale import hub as door
from lth_scale.config import files, hub_access, manifest
from lth_scale.config.errors import BadInput, Stopped
from lth_scale.config.resolution import parse
from lth_scale.pruning.prunable_set import digest, prunable
from lth_scale.shipping import card, hub, pull, repository_files
from lth_scale.shipping.export import locations
from lth_scale.shipping.publication import PublishedRun

REPO = "writer/ticket"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub that this process and its subprocesses use; its cache is empty."""
    with serving() as server:
        for name, value in environment(server, tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_access, "DELAYS", (0, 0))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield server


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of this module's search, once it has run."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(search, finished, tmp_path):
    """A copy of a finished search with a control."""
    if not finished.exists():
        shutil.move(search(control="random_mask"), finished)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def names_in(directory):
    """The names of all files below a directory."""
    return {
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    }


def test_a_pushed_run_is_a_plain_checkpoint_with_exact_zeros(server, run):
    url, _ = hub.push(run, REPO)
    assert url == f"{server.url}/{REPO}/commit/{server.repos[REPO].sha}"
    model = AutoModelForSequenceClassification.from_pretrained(REPO)
    ticket = Ticket.load(run / "ticket.safetensors")
    trained = AutoModelForSequenceClassification.from_pretrained(
        run / "rounds/03/model"
    ).state_dict()
    assert all(torch.equal(weight, trained[name]) for name, weight in model.state_dict().items())
    assert sum(int((weight == 0).sum()) for weight in prunable(model).values()) >= ticket.pruned
    assert all(not prunable(model)[name][~mask].any() for name, mask in ticket.masks.items())


def test_everything_is_in_one_commit_and_a_second_push_changes_nothing(server, run):
    hub.push(run, REPO)
    assert {
        "README.md",
        "ticket.safetensors",
        "model.safetensors",
        "compact/compact.safetensors",
        "export.json",
        "figures/score_against_sparsity.png",
        ".eval_results/sst2.yaml",
    } <= server.files(REPO).keys()
    assert len(server.repos[REPO].commits) == 2, "the empty one, and ours"
    large, url = len(server.large), hub.push(run, REPO)[0]
    assert (len(server.repos[REPO].commits), len(server.large)) == (2, large)
    assert server.repos[REPO].sha in url


def test_a_push_deletes_what_a_killed_push_left_and_nothing_else(server, run):
    left, other = run / ".hub.0123456789abcdef0123456789abcdef.tmp", run / ".hub.notes.tmp"
    for directory in (left, other):
        (directory / "hub").mkdir(parents=True)
        (directory / "hub/half").write_text("x")
    hub.push(run, REPO)
    assert [*run.glob(".*.tmp")] == [other] and (other / "hub/half").is_file()


def test_a_pull_brings_back_every_byte(server, run, tmp_path):
    hub.push(run, REPO)
    out = pull.pull(REPO, tmp_path / "pulled")
    assert {name: (out / name).read_bytes() for name in names_in(out)} == server.files(REPO)
    dense = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    compact = load_exported(out / "compact").state_dict()
    assert all(torch.equal(weight, compact[name]) for name, weight in dense.items())
    assert pull.pull(REPO, tmp_path / "pulled") == out, "a second pull verifies the first"
    masks = Ticket.load(run / "ticket.safetensors").masks
    assert Ticket.from_pretrained(REPO).masks.keys() == masks.keys()


def test_no_path_user_or_host_of_this_machine_is_pushed(
    server, search, transfer, tiny_bert, sst2_data, monkeypatch, tmp_path
):
    monkeypatch.setattr(socket, "gethostname", lambda: "s3cr3t-host")
    monkeypatch.setenv("LOGNAME", "s3cr3t-user")
    home = tmp_path / "s3cr3t-project/ali ce"
    shutil.copytree(tiny_bert, home / "model")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((home / "model" / name).read_text())
        content |= {
            "name_or_path": str(home / "model"),
            "special_tokens_map_file": "/root/s3cr3t-project/map.json",
        }
        (home / "model" / name).write_text(json.dumps(content))
    data = shutil.copytree(sst2_data, home / "data")
    run = search(
        model_name_or_path=home / "model", dataset_path=f"{data}/", output_dir=home / "run"
    )
    hub.push(run, REPO)
    flags = {
        "model_name_or_path": home / "model",
        "dataset_path": data,
        "ticket": run,
        "keep_network": True,
    }
    other = transfer(3, 4, **flags, output_dir=home / "first")
    hub.push(transfer(3, 4, **flags, output_dir=home / "again", compare_with=other), "writer/other")
    for repo in (REPO, "writer/other"):
        for name, content in server.files(repo).items():
            for secret in ("s3cr3t", "ali ce", str(Path.home()), str(Path.cwd())):
                assert secret.encode() not in content, (name, secret)
    arguments = json.loads(server.files("writer/other")["arguments.json"])
    published = [arguments[name] for name in ("dataset_path", "ticket", "compare_with")]
    assert published == ["data", "ticket.safetensors", "first"]
    pushed, ours = Ticket.from_pretrained(REPO), Ticket.load(run / "ticket.safetensors")
    assert pushed.base_model == pushed.arguments["model_name_or_path"] == "model"
    assert pushed.base_sha256 == ours.base_sha256 != ""
    assert ours.base_sha256.encode() in server.files(REPO)["README.md"]
    assert all(torch.equal(mask, ours.masks[name]) for name, mask in pushed.masks.items())
    pulled = pull.pull(REPO, tmp_path / "pulled")
    with pytest.raises(BadInput, match="specify --model_name_or_path"):
        transfer(5, ticket=pulled, model_name_or_path=None, output_dir=tmp_path / "new")
    assert transfer(
        5, ticket=pulled, model_name_or_path=home / "model", output_dir=tmp_path / "new"
    )


def test_a_tokenizer_with_chat_templates_is_pulled_as_it_was_pushed(server, run, tmp_path, capsys):
    model = run / "rounds/03/model"
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "additional_chat_templates").mkdir()
    for name in ("tool_use", "my own"):
        (model / f"additional_chat_templates/{name}.jinja").write_text("{{ tools }}")
    hub.push(run, REPO)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "my own.jinja" in line and "not uploaded" in line] == lines[
        -1:
    ]
    out = pull.pull(REPO, tmp_path / "pulled")
    for folder in (out, out / "compact"):
        assert set(AutoTokenizer.from_pretrained(folder).chat_template) == {"default", "tool_use"}
        assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"


VOCABULARIES = (
    "vocab.txt",
    "merges.txt",
    "tokenizer.json",
    "vocab.bpe",
    "bpe.codes",
    "sentencepiece.bpe.model",
    "source.spm",
    "prophetnet.tokenizer",
    "additional_chat_templates/tool_use.jinja",
)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_pull_accepts_the_files_of_tokenizers(name):
    assert all(re.fullmatch(pull.PUSHED, folder + name, re.ASCII) for folder in ("", "compact/"))


def test_a_push_uploads_only_what_a_pull_accepts(tmp_path, capsys):
    kept = {"model.safetensors", "compact/vocab.bpe", "bpe.codes"}
    foreign = {"evil.py", "compact/x.bin", ".git/x.json"}
    for name in kept | foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    repository_files.remove_foreign(tmp_path)
    assert names_in(tmp_path) == kept
    (line,) = capsys.readouterr().err.splitlines()
    assert all(name in line for name in foreign)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_model_that_was_local_to_the_run_is_local_in_every_directory(
    server, search, tiny_bert, tmp_path, monkeypatch, recorded
):
    model = shutil.copytree(tiny_bert, tmp_path / "models/mine")
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path)
        run = search(model_name_or_path="models/mine")
    path = run / "arguments.json"
    saved = json.loads(path.read_text())
    if not recorded:  # as version 0.1.0 left it
        del saved["digests"]
        path.write_text(json.dumps(saved))
    hub.push(run, REPO)
    assert not [name for name, content in server.files(REPO).items() if b"models/mine" in content]
    card = server.files(REPO)["README.md"].decode()
    assert ModelCard(card).data.base_model == Ticket.from_pretrained(REPO).base_model == "mine"
    for text in ("license: mit", "--model_name_or_path mine", "DIRECTORY/OF/mine"):
        assert text in card
    assert not [line for line in server.requests if "/api/models/models/mine" in line]


@pytest.mark.parametrize("target", ["empty", "nowhere"])
def test_a_pull_into_a_link_is_refused_before_any_request(server, tmp_path, target):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(BadInput, match=f"--output_dir {tmp_path}/link: .*another directory"):
        pull.pull(REPO, tmp_path / "link")
    assert server.requests == [] and (tmp_path / "link").is_symlink()


UNLISTED = (
    ".git/hooks/post-checkout",
    "modeling.py",
    "pytorch_model.bin",
    ".env",
    "compact/evil.py",
    "notes.json",
)


def test_a_pull_downloads_only_what_the_manifest_lists(server, run, tmp_path):
    hub.push(run, REPO)
    ours = dict(server.files(REPO))
    server.files(REPO).update(dict.fromkeys(UNLISTED, b"evil"))
    out = pull.pull(REPO, tmp_path / "pulled")
    assert (
        names_in(out) == ours.keys() == {*json.loads(ours["export.json"])["files"], "export.json"}
    )
    assert not [line for line in server.requests if "resolve" in line and line.endswith(UNLISTED)]
    (out / "notes").write_text("x")
    assert pull.pull(REPO, out) == out and (out / "notes").read_text() == "x"


LISTED = (
    *UNLISTED[:5],
    "/etc/x.json",
    "../x.json",
    "a/../x.json",
    "C:\\x.json",
    "compact/.x.json",
    "x.json\n",
)


@pytest.mark.parametrize("name", LISTED)
def test_a_manifest_that_lists_a_file_which_no_push_uploads_is_refused(server, tmp_path, name):
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    (pushed / "config.json").write_text("{}")
    (pushed / "model.safetensors").write_bytes(b"")
    facts = {"kind": "dense", "dtype": "float32", "sparsity": 0.1, "pruned": 1, "prunable": 2}
    facts |= {"dense_bytes": 3, "difference": {}}
    facts |= dict.fromkeys(("architecture", "source", "source_sha256"), "x")
    content = locations.write_manifest(pushed, facts)
    del content["sha256"]
    content["files"][name] = hashlib.sha256(b"evil").hexdigest()
    sealed = manifest.seal(files.as_json(content))
    server.repos[REPO] = Repo(commits=[{name: b"evil", "export.json": sealed}])
    with pytest.raises(BadInput, match=r"which no push uploads|files outside the directory"):
        pull.pull(REPO, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_an_edited_card_is_not_pulled_and_a_push_of_version_0_1_0_is(server, run, tmp_path):
    hub.push(run, REPO)
    server.files(REPO)["README.md"] = b"edited"
    out = pull.pull(REPO, tmp_path / "pulled")
    assert not (out / "README.md").exists() and (out / ".eval_results/sst2.yaml").is_file()
    assert load_exported(out).num_parameters() and pull.pull(REPO, out) == out
    content = json.loads((out / "export.json").read_text())
    # Version 0.1.0 listed neither.
    (out / "compact/export.json").rename(tmp_path / "compact.json")
    shutil.rmtree(out / ".eval_results")
    locations.write_manifest(out, content)
    server.files(REPO)["export.json"] = (out / "export.json").read_bytes()
    server.repos[REPO].commits.append(dict(server.files(REPO)))
    older = pull.pull(REPO, tmp_path / "older")
    assert load_exported(older / "compact").num_parameters()
    assert not (older / ".eval_results").exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ticket.safetensors", "compact/compact.safetensors"]
)
def test_a_flipped_byte_on_the_hub_is_refused_and_nothing_is_kept(server, run, tmp_path, name):
    hub.push(run, REPO)
    content = bytearray(server.files(REPO)[name])
    content[-3] ^= 1
    server.files(REPO)[name] = bytes(content)
    with pytest.raises(BadInput, match=r"changed|altered|damaged|whole|intact"):
        pull.pull(REPO, tmp_path / "pulled")
    assert [path.name for path in tmp_path.iterdir() if "pulled" in path.name] == []
    if name == "ticket.safetensors":
        with pytest.raises(ValueError, match="not a valid"):
            Ticket.from_pretrained(REPO)


def test_weights_that_are_not_zero_where_the_ticket_prunes_are_refused(server, run, tmp_path):
    hub.push(run, REPO)
    out = pull.pull(REPO, tmp_path / "pulled")
    other = Ticket.load(out / "ticket.safetensors")
    other.masks = {name: ~mask for name, mask in other.masks.items()}
    other.save(out / "ticket.safetensors")
    locations.write_manifest(out, json.loads((out / "export.json").read_text()))
    with pytest.raises(BadInput, match="is not zero where the ticket prunes"):
        pull.verify(out)


def test_the_ticket_alone_gives_the_same_weights_on_the_base_model(server, run, tiny_bert):
    hub.push(run, REPO)
    ticket = Ticket.from_pretrained(REPO)
    base = AutoModel.from_pretrained(tiny_bert, add_pooling_layer=True)
    ours = {name: weight.clone() for name, weight in prunable(base).items() if "pooler" not in name}
    given = prunable(ticket.apply(base))
    for name, weight in ours.items():
        assert torch.equal(given[name], weight * ticket.masks[name])
    requests = [line for line in server.requests if "resolve" in line]
    assert requests and all("ticket.safetensors" in line for line in requests)
    assert len(digest(ours)) == 64


def test_the_card_has_the_facts_of_the_run(server, run):
    hub.push(run, REPO)
    card = ModelCard(server.files(REPO)["README.md"].decode())
    data, rows = card.data.to_dict(), json.loads((run / "results.json").read_text())
    arguments = json.loads((run / "arguments.json").read_text())
    assert data["base_model"] == Path(arguments["model_name_or_path"]).name
    assert {"lottery-ticket", "pruning", "sparsity"} <= {*data["tags"]}
    assert data["license"] == "unknown"
    assert data["pipeline_tag"] == "text-classification" and "accuracy" in data["metrics"]
    scores = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert scores == rows[-1]["eval"], "the scores of the last round"
    results = yaml.safe_load(server.files(REPO)[".eval_results/sst2.yaml"])
    (entry,) = parse_eval_result_entries(results)
    assert (entry.dataset_id, entry.task_id) == ("nyu-mll/glue", "sst2")
    assert entry.value == rows[-1]["eval"]["accuracy"]
    assert "local files" in entry.notes and "local files" in card.text
    for text in (
        *("figures/score_against_sparsity.png", f'from_pretrained("{REPO}")'),
        *("must not be used to claim", "accelerate launch -m lth_scale.imp --task sst2"),
        *("Not measured", "random_mask"),
    ):
        assert text in card.text, text
    assert str(run) not in card.text and "/tmp" not in json.dumps(data)
    assert "that it has learned the task: the network is dead (one prediction" in card.text
    assert "Trivial predictors: constant accuracy" in card.text


def test_the_card_has_the_base_models_licence_and_the_measured_speed(
    server, search, tiny_bert, tmp_path
):
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    run = search(model_name_or_path=base)
    (run / "speed").mkdir()
    row = {"ms": [1.0, 1.0, 1.0], "cpu_ms": [1.0, 1.0, 1.0], "sparse": False, "precision": "fp32"}
    pruned = Ticket.load(run / "ticket.safetensors").pruned
    cell = {"target": "x", "sparsity": 0.3, "pruned": pruned, "device": "cpu", "batch_size": 1}
    cell |= {"sequence_length": 8, "threads": 1, "best": {"fp32": "torch"}, "rows": {"torch": row}}
    machine = {"cpu": "A CPU", "cores": "1 of 2 cores", "gpu": "", "system": "Linux"}
    report = {"machine": machine, "settings": {"repeats": 4}, "cells": [cell]}
    (run / "speed/speed.json").write_text(json.dumps(report))
    card = hub.push(run, dry_run=True)[0]
    assert "license: mit" in card and "inherited from the base model" in card
    assert "A CPU, 1 of 2 cores" in card and "| torch |" in card and "Not measured. " not in card


PRUNED = "cells with its pruned weights and nothing else"


@pytest.mark.parametrize(
    "content", ['{"cells": 5}', "[]", '{"cells": [{}]}', "{", PRUNED, None], ids=str
)
def test_a_damaged_report_of_a_speed_check_is_not_in_the_card(run, capsys, content):
    published = PublishedRun(run / "rounds/03")
    path = run.with_name("speed-run") / "speed.json"
    path.parent.mkdir()
    if content is None:
        os.mkfifo(path)
    else:
        cells = json.dumps({"cells": [{"pruned": published.ticket.pruned}]})
        path.write_text(cells if content == PRUNED else content)
    assert card.speed_section(published) == ""
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and "speed check" in line


def test_the_command_of_the_card_repeats_the_run(run, monkeypatch, tmp_path):
    published = PublishedRun(run / "rounds/03")
    flags = published.args.as_dict()
    for name in ("model_name_or_path", "dataset_path"):
        path = Path(flags[name])
        (tmp_path / path.name).symlink_to(path)
        flags[name] = path.name
    monkeypatch.chdir(tmp_path)
    words = shlex.split(published.command)
    assert words[:4] == ["accelerate", "launch", "-m", "lth_scale.imp"]
    cosmetic = {name: flags[name] for name in ("output_dir", "report_to")}
    assert parse(words[4:]).as_dict() | cosmetic == flags


def test_a_transfer_is_pushed_with_its_first_seeds_network(server, run, transfer):
    done = transfer(3, 4, ticket=run)
    with pytest.raises(BadInput, match="--keep_network"):
        hub.push(done, REPO)
    # This trains the first seed once more.
    assert transfer(3, 4, ticket=run, push_to_hub=True, hub_model_id=REPO) == done
    card = server.files(REPO)["README.md"].decode()
    assert "n = 2 seeds" in card and "seed 3" in card and "lth_scale.transfer" in card
    model = AutoModelForSequenceClassification.from_pretrained(REPO)
    masks = Ticket.load(run / "ticket.safetensors").masks
    assert all(not prunable(model)[name][~mask].any() for name, mask in masks.items())
    before = list(server.requests)
    transfer(3, 4, ticket=run, push_to_hub=True, hub_model_id=REPO)
    assert server.requests == before, "a push is not repeated"


def test_the_card_of_a_dense_reference_claims_no_pruning(run, transfer, tmp_path):
    cards = {}
    for control in ("reinit", "dense_long", "dense_restarts"):
        ticket = run / "rounds/01/ticket.safetensors"
        flags = {"control": control, "keep_network": True, "output_dir": tmp_path / control}
        cards[control] = hub.push(transfer(3, ticket=ticket, **flags), REPO, dry_run=True)[0]
    assert "A control of a lottery ticket (`reinit`" in cards.pop("reinit")
    for control in cards:
        introduction = next(x for x in cards[control].splitlines() if x.startswith("A reference"))
        assert "nothing is pruned" in introduction and "ticket of 10.01%" in introduction
        assert "exactly zero" not in cards[control] and "0.00%" not in cards[control]
        assert "is a reference of equal budget" in cards[control]
        assert "sparse" not in ModelCard(cards[control]).data.tags
    best = "its score is the best of 2, chosen on the data that it is scored on"
    assert best in cards["dense_restarts"] and "chosen on" not in cards["dense_long"]


def test_a_dry_run_makes_no_request_and_leaves_no_file(server, run):
    picture = run / "figures/score_against_sparsity.png"
    size = picture.stat().st_size
    shutil.rmtree(picture.parent)  # as before a search has ended
    before = sorted(run.rglob("*"))
    card, sizes = hub.push(run, REPO, dry_run=True)
    assert card.startswith("---\n") and str(run) not in card
    assert dict(sizes)["ticket.safetensors"] > 1000
    assert dict(sizes)["figures/score_against_sparsity.png"] == size
    assert server.requests == [] and sorted(run.rglob("*")) == before


def test_private_and_a_name_without_a_user(server, run):
    hub.push(run, "mine", private=True)
    assert server.repos["writer/mine"].private


@pytest.mark.parametrize(
    ("token", "repo", "match"),
    [
        ("hf_wrong", REPO, "does not accept the token"),
        ("", REPO, "no token"),
        ("hf_reader", REPO, "may not write"),
        ("hf_writer", "other/ticket", "may not write"),
    ],
)
def test_a_rejected_token_is_bad_input(server, run, monkeypatch, token, repo, match):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BadInput, match=match) as error:
        hub.push(run, repo)
    assert "\n" not in str(error.value) and server.repos == {}


# (fault, whether the push succeeds)
FAULTS = {
    "5xx twice at the commit": (Fault("/commit/", 503, 2), True),
    "5xx while files are announced": (Fault("/preupload/", 500, 3), True),
    "5xx of the storage": (Fault("PUT /large", 502, 2), True),
    "a connection cut in mid-upload": (Fault("PUT /large", "cut", 2), True),
    "a connection cut at the commit": (Fault("/commit/", "cut", 1), True),
    "slow answers": (Fault("POST", 0.2), True),
    "5xx for ever": (Fault("/commit/", 500), False),
    "cut for ever": (Fault("PUT /large", "cut"), False),
    "an answer that never comes": (Fault("/preupload/", 60.0), False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_push_to_a_failing_hub_is_complete_or_changes_nothing(server, run, monkeypatch, name):
    monkeypatch.setattr(hub_access, "HUB_TIMEOUT", 0.5)
    fault, pushed = FAULTS[name]
    server.faults.append(Fault(fault.where, fault.what, fault.times))
    if pushed:
        hub.push(run, REPO)
    else:
        with pytest.raises(Stopped, match="nothing is lost") as error:
            hub.push(run, REPO)
        assert "\n" not in str(error.value)
        assert server.files(REPO) == {} and not (run / "hub.json").exists()
        assert [path.name for path in run.iterdir() if path.name.startswith(".hub")] == []
        server.faults.clear()
        hub.push(run, REPO)
    assert len(server.repos[REPO].commits) == 2 and "model.safetensors" in server.files(REPO)


def test_a_download_survives_a_cut_and_a_missing_repository_is_named(server, run, tmp_path):
    hub.push(run, REPO)
    server.faults += [
        Fault("GET /.*resolve.*model", "cut", 1),
        Fault("GET /.*resolve.*compact", 503, 1),
    ]
    assert (pull.pull(REPO, tmp_path / "pulled") / "model.safetensors").is_file()
    for name, revision, match in (
        ("writer/none", None, "^writer/none: does not exist on the Hub"),
        (REPO, "v9", "^--revision v9"),
    ):
        with pytest.raises(BadInput, match=match):
            pull.pull(name, tmp_path / "other", revision)
    server.files(REPO).pop("ticket.safetensors")
    huggingface_hub.constants.HF_HUB_CACHE = str(tmp_path / "hf/other")
    with pytest.raises(BadInput, match=r"^writer/ticket: has no ticket"):
        Ticket.from_pretrained(REPO)


def test_a_search_pushes_at_the_end_and_a_failed_push_loses_nothing(
    server, search, monkeypatch, tmp_path, capsys
):
    server.faults.append(Fault("/commit/", 500))
    wanted = {"push_to_hub": True, "hub_model_id": REPO, "hub_private_repo": True}
    with pytest.raises(Stopped, match="nothing is lost") as error:
        search(**wanted)
    assert (tmp_path / "out/complete").is_file() and server.files(REPO) == {}
    repeat = str(error.value).partition("python -m lth_scale.hub ")[2].split()
    server.faults.clear()
    monkeypatch.setattr(sys, "argv", ["hub", *repeat])
    door.main()
    assert f"pushed to  {server.url}/{REPO}/commit/" in capsys.readouterr().out
    assert server.repos[REPO].private and "model.safetensors" in server.files(REPO)
    before = list(server.requests)
    search(**wanted)
    assert server.requests == before and "on the Hub" in capsys.readouterr().out


def test_the_token_is_checked_before_the_training(server, search, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(BadInput, match="HF_TOKEN"):
        search(push_to_hub=True, hub_model_id=REPO)
    assert not (tmp_path / "out").exists()

"""transfer.py and subnetwork.py: m ⊙ θ on another task, seed by seed, beside its controls."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import sentence, write_jsonl
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

from lth_scale import Ticket
from lth_scale.config.arguments import Transfer
from lth_scale.config.errors import BadInput
from lth_scale.config.files import sha256
from lth_scale.config.resolution import parse
from lth_scale.pruning.prunable_set import base_digest
from lth_scale.pruning.registries import CONTROLS
from lth_scale.shipping.export.locations import locate
from lth_scale.training import loop
from lth_scale.training.transfer import barrier


def rows(out) -> list[dict]:
    return json.loads((out / "results.json").read_text())


@pytest.fixture
def starts(monkeypatch):
    """What every training started from: weights, masks, first batch and generator."""
    seen = []
    train = loop.train

    def watch(net, until, rate, on_step):
        weights = {name: weight.clone() for name, weight in net.engine.full_weights().items()}
        seen.append(
            {
                "weights": weights,
                "first": net.batches[0],
                "seed": net.args.seed,
                "rng": torch.get_rng_state(),
            }
        )
        return train(net, until, rate, on_step)

    monkeypatch.setattr(loop, "train", watch)
    return seen


@pytest.fixture
def pair_data(tmp_path):
    """MRPC's columns."""
    for split, count in (("train", 40), ("validation", 16)):
        made = [
            {"sentence1": sentence(i), "sentence2": sentence(i + 1), "label": i % 2, "idx": i}
            for i in range(count)
        ]
        write_jsonl(tmp_path / f"pairs/{split}.jsonl", made)
    return tmp_path / "pairs"


def test_the_dense_network_and_a_round_are_those_of_a_search_with_that_seed(
    search, transfer, tmp_path
):
    found = search(seed=7)
    dense = transfer(7, output_dir=tmp_path / "dense")
    ticket = found / "rounds/02/ticket.safetensors"
    again = transfer(7, ticket=ticket)
    same = ("sparsity", "pruned", "eval", "train_loss", "steps")
    for k, out in ((0, dense), (2, again)):
        assert [rows(out)[0][name] for name in same] == [rows(found)[k][name] for name in same]
    assert (
        Ticket.load(again / "seeds/07/ticket.safetensors").masks.keys()
        == Ticket.load(ticket).masks.keys()
    )


def test_every_seed_has_its_own_head_and_data_order_and_the_same_subnetwork(
    search, transfer, starts
):
    found = search(max_steps=1)
    starts.clear()
    out = transfer(1, 2, 3, ticket=found)
    ticket = Ticket.load(found / "ticket.safetensors")
    assert [start["seed"] for start in starts] == [1, 2, 3]
    for name, mask in ticket.masks.items():
        weights = [start["weights"][f"bert.{name}"] for start in starts]
        assert all(not weight[~mask].any() for weight in weights)
        assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    heads = [start["weights"]["classifier.weight"] for start in starts]
    assert not torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])
    assert not torch.equal(
        starts[0]["first"]["labels"], starts[1]["first"]["labels"]
    ) or not torch.equal(starts[0]["first"]["input_ids"], starts[1]["first"]["input_ids"])
    assert [row["seed"] for row in rows(out)] == [1, 2, 3]
    assert (out / "seeds/03/complete").is_file() and (out / "complete").is_file()


def test_the_base_model_comes_from_the_ticket(search, small, tiny_bert):
    found = search(max_steps=1, target_sparsity=0.1)
    flags = small(ticket=found, target_sparsity=None, model_name_or_path=None)
    assert parse(flags, Transfer).model_name_or_path == str(tiny_bert)


@pytest.mark.parametrize(
    ("source", "target"), [("mlm", "sst2"), ("sst2", "mlm"), ("mrpc", "squad"), ("squad", "mrpc")]
)
def test_a_ticket_of_one_task_trains_another_with_and_without_pooler(
    source, target, search, transfer, text_data, sst2_data, pair_data, tmp_path
):
    context = " ".join(sentence(i) for i in range(6))
    asked = [
        {
            "id": str(i),
            "title": "t",
            "context": context,
            "question": sentence(i),
            "answers": {"text": [context[:3]], "answer_start": [0]},
        }
        for i in range(12)
    ]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"squad/{split}.jsonl", asked)
    data = {"mlm": text_data, "sst2": sst2_data, "mrpc": pair_data, "squad": tmp_path / "squad"}
    sizes = {"max_seq_length": 48, "doc_stride": 16}
    found = search(
        task=source, dataset_path=data[source], max_steps=1, target_sparsity=0.2, **sizes
    )
    out = transfer(1, task=target, dataset_path=data[target], ticket=found, max_steps=1, **sizes)
    ticket = Ticket.load(found / "ticket.safetensors")
    used = Ticket.load(out / "seeds/01/ticket.safetensors")
    assert all(
        torch.equal(used.masks[name], mask)
        for name, mask in ticket.masks.items()
        if name in used.masks
    )
    assert (
        used.masks.keys() == ticket.masks.keys()
    )  # the checkpoint has no pooler: where there is one, it is fresh
    assert used.task == target


@pytest.fixture
def ticket(search, tmp_path):
    """The directory of a search that trains nothing."""
    return search(max_steps=0, target_sparsity=0.2, output_dir=tmp_path / "found")


def forget_base(found, to) -> None:
    replace(Ticket.load(found / "ticket.safetensors"), base_sha256="").save(to)


@pytest.mark.parametrize("more", [{}, {"control": "reinit"}, {"control": "one_shot", "fp16": None}])
def test_a_ticket_and_its_controls_are_refused_on_other_weights(
    more, ticket, transfer, tiny_bert, other_bert, tmp_path
):
    base = Ticket.load(ticket / "ticket.safetensors").base_sha256
    ours = base_digest(AutoModel.from_pretrained(other_bert))
    with pytest.raises(BadInput) as refused:
        transfer(1, ticket=ticket, model_name_or_path=other_bert, max_steps=0, **more)
    said = str(refused.value)
    named = (
        f"--ticket {ticket}/ticket.safetensors",
        base[:12],
        ours[:12],
        str(tiny_bert),
        str(other_bert),
    )
    assert all(each in said for each in (*named, "--allow_other_weights")) and "\n" not in said
    assert not (tmp_path / "transfer").exists()


def test_allowed_other_weights_are_named_in_every_output(
    ticket, transfer, other_bert, capsys, caplog
):
    out = transfer(
        1, ticket=ticket, model_name_or_path=other_bert, max_steps=0, allow_other_weights=True
    )
    assert "other weights" in caplog.text and "--allow_other_weights" in capsys.readouterr().out
    assert "--allow_other_weights" in rows(out)[0]["note"]
    used = Ticket.load(out / "seeds/01/ticket.safetensors")
    assert used.arguments["allow_other_weights"] is True
    assert used.base_sha256 == base_digest(AutoModel.from_pretrained(other_bert))


def test_sharded_weights_and_older_tickets_are_accepted(
    ticket, transfer, tiny_bert, other_bert, tmp_path, caplog
):
    shutil.copytree(tiny_bert, tmp_path / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForMaskedLM.from_pretrained(tiny_bert).save_pretrained(
        tmp_path / "shards", max_shard_size="20KB"
    )
    out = transfer(1, ticket=ticket, model_name_or_path=tmp_path / "shards", max_steps=0)
    kept = [
        Ticket.load(each / "ticket.safetensors").base_sha256 for each in (ticket, out / "seeds/01")
    ]
    assert kept[0] == kept[1] != "" and "base_sha256" not in caplog.text
    forget_base(ticket, tmp_path / "old")
    out = transfer(
        1,
        ticket=tmp_path / "old",
        model_name_or_path=other_bert,
        max_steps=0,
        output_dir=tmp_path / "o",
    )
    assert [r.message for r in caplog.records if "base_sha256" in r.message] == [
        f"--ticket {tmp_path}/old: has no base_sha256, so whether it comes from the weights of "
        f"{str(other_bert)!r} is not checked"
    ]
    assert Ticket.load(out / "seeds/01/ticket.safetensors").base_sha256 not in ("", kept[0])


def test_theta_i_must_come_from_the_search_or_the_base_of_the_ticket(
    search, transfer, tiny_bert, other_bert, tmp_path, caplog
):
    own, again, other = (
        search(
            **{
                "max_steps": 2,
                "rewind_step": 0,
                "target_sparsity": 0.1,
                "output_dir": tmp_path / name,
                **more,
            }
        )
        for name, more in (
            ("own", {}),
            ("again", {"rewind_step": 1}),
            ("other", {"model_name_or_path": other_bert}),
        )
    )
    assert (
        Ticket.load(own / "ticket.safetensors").theta_sha256
        != Ticket.load(again / "ticket.safetensors").theta_sha256
    )
    given = {"ticket": own, "max_steps": 0}
    out = transfer(1, **given, theta=own / "theta.safetensors", model_name_or_path=other_bert)
    kept = [
        Ticket.load(each / "ticket.safetensors").base_sha256 for each in (own, out / "seeds/01")
    ]
    assert kept[0] == kept[1]  # of the weights that are trained
    assert caplog.text.count(f"--theta {own}/theta.safetensors: θᵢ of the ticket itself") == 1
    transfer(
        1, **given, theta=again / "theta.safetensors", output_dir=tmp_path / "again-1"
    )  # θ₁ of the same base
    for theta in (again, other):
        with pytest.raises(
            BadInput,
            match=rf"--theta {theta}/theta\.safetensors: comes from other weights, base_sha256",
        ):
            model = other_bert if theta == again else tiny_bert
            transfer(
                1,
                **given,
                theta=theta / "theta.safetensors",
                model_name_or_path=model,
                output_dir=tmp_path / "no",
            )
    assert "base_sha256" not in caplog.text
    save_file(load_file(other / "theta.safetensors"), tmp_path / "old.safetensors")
    with pytest.raises(BadInput, match=r"--ticket \S+: comes from other weights, base_sha256"):
        transfer(
            1,
            **given,
            theta=tmp_path / "old.safetensors",
            model_name_or_path=other_bert,
            output_dir=tmp_path / "n",
        )
    assert f"--theta {tmp_path}/old.safetensors: has no base_sha256" in caplog.text


def test_paths_are_resolved_against_the_first_working_directory(
    search, transfer, small, tiny_bert, sst2_data, tmp_path, monkeypatch
):
    shutil.copytree(tiny_bert, tmp_path / "here/models/x")
    (tmp_path / "link").symlink_to("here/models/x")
    (tmp_path / "there/models/x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    found = search(
        model_name_or_path="models/x", max_steps=0, target_sparsity=0.1, output_dir="found"
    )
    relative = {
        "model_name_or_path": "./models/x",
        "ticket": "found",
        "compare_with": "dense",
        "keep_network": True,
    }
    transfer(1, model_name_or_path="models/x", max_steps=0, output_dir="dense")
    out = transfer(1, **relative, max_steps=0, output_dir="out").absolute()
    monkeypatch.chdir(tmp_path / "there")
    home, written = tmp_path / "here", json.loads((out / "arguments.json").read_text())
    ticket = Ticket.load(home / found / "ticket.safetensors")
    assert ticket.base_model == ticket.arguments["model_name_or_path"] == str(home / "models/x")
    assert [
        written[name] for name in ("model_name_or_path", "ticket", "compare_with", "output_dir")
    ] == [str(home / name) for name in ("models/x", "found/ticket.safetensors", "dense", "out")]
    saved = b"".join(path.read_bytes() for path in out.rglob("model/*.json"))
    assert b"./models" not in saved and b'"models/x' not in saved
    args = parse(
        small(ticket=home / found, target_sparsity=None, model_name_or_path=None), Transfer
    )
    assert args.model_name_or_path == str(home / "models/x")
    for path in ("../here/models/x", "../link", str(tmp_path / "link/"), str(home / "models/x")):
        given = {
            "model_name_or_path": path,
            "ticket": home / found,
            "max_steps": 0,
            "output_dir": "../here/out",
        }
        assert transfer(1, **given, keep_network=True)


@pytest.mark.parametrize(
    "control", [name for name, each in CONTROLS.items() if name != "none" and not each.budget]
)
def test_a_control_of_a_ticket_has_its_sparsity(control, search, transfer):
    found = search(max_steps=1, target_sparsity=0.2)
    out = transfer(5, ticket=found, control=control, max_steps=1)
    assert rows(out)[0]["pruned"] == Ticket.load(found / "ticket.safetensors").pruned
    used = Ticket.load(out / "seeds/05/ticket.safetensors")
    assert used.arguments["found_by"] == control


@pytest.mark.parametrize("control", ["random_mask", "random_layerwise", "one_shot"])
def test_without_a_ticket_a_control_has_target_sparsity(control, transfer):
    row = rows(transfer(5, control=control, target_sparsity=0.37, max_steps=0))[0]
    assert row["pruned"] == round(0.37 * row["prunable"])


def test_theta_i_of_a_search_can_replace_theta_0(search, transfer, starts, text_data):
    found = search(task="mlm", dataset_path=text_data, rewind_step=2, target_sparsity=0.1)
    theta = load_file(found / "theta.safetensors")
    starts.clear()
    transfer(1, ticket=found, theta=found / "theta.safetensors")
    masks = Ticket.load(found / "ticket.safetensors").masks
    for name, mask in masks.items():
        assert torch.equal(starts[0]["weights"][f"bert.{name}"], theta[f"bert.{name}"] * mask)
    embedding = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(starts[0]["weights"][embedding], theta[embedding])


def test_trained_weights_of_standard_pruning_can_replace_theta_0(
    search, transfer, starts, text_data, other_bert, tmp_path, caplog
):
    found = search(
        task="mlm", dataset_path=text_data, rewind="none", target_sparsity=0.1, prune_rate=0.1
    )
    home = found / "rounds/01"
    trained = load_file(home / "weights.safetensors")
    starts.clear()
    given = {"ticket": home / "ticket.safetensors", "theta": home / "weights.safetensors"}
    out = transfer(1, **given)
    masks = Ticket.load(given["ticket"]).masks
    started = starts[0]["weights"]
    for name, mask in masks.items():
        weight = trained[f"bert.{name}"]
        assert torch.equal(weight, weight * mask)  # the ticket's own mask
        assert torch.equal(started[f"bert.{name}"], weight)
    bias = "bert.encoder.layer.0.attention.self.query.bias"
    assert torch.equal(started[bias], trained[bias])
    assert "base_sha256" not in caplog.text
    kept = json.loads((out / "arguments.json").read_text())["digests"]["theta"]
    assert kept == {"weights.safetensors": sha256(given["theta"])}
    with pytest.raises(BadInput, match=r"--theta \S+: comes from other weights, base_sha256"):
        transfer(1, **given, model_name_or_path=other_bert, output_dir=tmp_path / "no")


def test_a_resumed_transfer_trains_the_missing_and_the_added_seeds(transfer, starts):
    transfer(1, 2)
    before = rows(transfer(1, 2))
    out = transfer(1, 2, 3)
    assert [start["seed"] for start in starts] == [1, 2, 3]
    assert rows(out)[:2] == before


def spread(directory, step=0.01):
    """Give the results of a transfer a spread over seeds, as if its networks had learned."""
    for path in (*directory.glob("seeds/*/metrics.json"), directory / "results.json"):
        content = json.loads(path.read_text())
        for row in content if path.name == "results.json" else [content]:
            row["eval"]["accuracy"] = 0.9 - step * row["seed"]
            row["constant_prediction"] = False
        path.write_text(json.dumps(content))


def test_the_output_shows_mean_spread_and_the_verdict_beside_the_papers_rules(
    transfer, tmp_path, capsys
):
    dense = transfer(1, 2, 3, output_dir=tmp_path / "dense")
    spread(dense)
    flags = {"control": "random_mask", "target_sparsity": 0.9, "compare_with": dense}
    out = transfer(1, 2, 3, **flags)
    assert "no verdict: the subnetwork is dead (one prediction" in capsys.readouterr().out
    spread(out, step=0.012)
    transfer(1, 2, 3, **flags)
    said = capsys.readouterr().out
    scores = [row["eval"]["accuracy"] for row in rows(out)]
    assert (
        f"{sum(scores) / 3:.4f} ± {torch.tensor(scores, dtype=torch.float64).std():.4f} (n = 3)"
        in said
    )
    verdict = said[said.index("compared with") :]
    assert "(accuracy in percentage points):" in verdict and "n = 3 pairs" in verdict
    assert re.search(r"answer +(matches|worse|undecided: )", verdict) and "δ = 1," in verdict
    assert "90 % interval [" in verdict and ", Holm p " in verdict
    assert re.search(r"the paper's rules +(none|strict|within)", verdict)


def test_delta_changes_the_verdict_of_a_finished_transfer(transfer, tmp_path, capsys, starts):
    dense = transfer(1, 2, 3, output_dir=tmp_path / "dense")
    spread(dense)
    flags = {"control": "random_mask", "target_sparsity": 0.9, "compare_with": dense}
    spread(transfer(1, 2, 3, **flags), step=0.012)
    trained = len(starts)
    capsys.readouterr()
    transfer(1, 2, 3, **flags, delta=101.0)
    said = capsys.readouterr().out
    assert "δ = 101," in said and re.search(r"answer +matches", said) and len(starts) == trained


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_a_transfer_to_a_dead_or_untrained_network_gets_no_verdict(
    transfer, tmp_path, capsys, seeds
):
    dense = transfer(*seeds, output_dir=tmp_path / "dense")
    transfer(*seeds, control="random_mask", target_sparsity=0.9, compare_with=dense)
    assert "no verdict: the full network is dead" in capsys.readouterr().out


def test_networks_that_do_not_beat_a_trivial_predictor_are_named(transfer, capsys):
    out = transfer(1, 2)
    capsys.readouterr()
    for path in out.glob("seeds/*/metrics.json"):  # as if they gave two predictions
        path.write_text(json.dumps({**json.loads(path.read_text()), "constant_prediction": False}))
    transfer(1, 2)
    text = "Untrained (not shown to be better than the best trivial predictor): seed 01, seed 02"
    assert text in capsys.readouterr().out


def test_transfers_with_other_seeds_are_not_paired(transfer, tmp_path, capsys):
    dense = transfer(1, 2, 4, output_dir=tmp_path / "dense")
    transfer(1, 2, 3, control="random_mask", target_sparsity=0.9, compare_with=dense)
    assert re.search(r"n = 3$", capsys.readouterr().out, re.MULTILINE)


def test_connectivity_interpolates_between_two_data_orders(transfer, starts):
    out = transfer(1, 2, connectivity=True)
    first, second = starts[-2:]
    assert all(
        torch.equal(first["weights"][name], weight) for name, weight in second["weights"].items()
    )
    assert (first["seed"], second["seed"]) == (1, 2) and not torch.equal(
        first["rng"], second["rng"]
    )
    found = json.loads((out / "connectivity.json").read_text())
    assert [each["share"] for each in found["path"]] == [i / 10 for i in range(11)]
    scores = [each["eval"]["accuracy"] for each in found["path"]]
    assert scores[0] == rows(out)[0]["eval"]["accuracy"]  # the first seed's own network
    assert found["barrier"] == barrier(scores)


def test_the_barrier_is_the_loss_against_the_mean_of_the_endpoints():
    assert barrier([0.8, 0.5, 0.6]) == pytest.approx(0.2)
    assert barrier([0.8, 0.9, 0.8]) == 0


def test_theta_of_another_network_is_refused(transfer, tmp_path):
    save_file(
        {"bert.encoder.layer.0.output.dense.weight": torch.zeros(2, 2)},
        tmp_path / "theta.safetensors",
    )
    with pytest.raises(BadInput, match="--theta"):
        transfer(1, theta=tmp_path / "theta.safetensors")


def test_a_comparison_across_tasks_or_with_a_search_is_refused(
    search, transfer, tmp_path, text_data
):
    other = transfer(
        1, task="mlm", dataset_path=text_data, output_dir=tmp_path / "other", max_steps=1
    )
    found = search(max_steps=1, target_sparsity=0.1)
    for directory, said in (
        (other, "transfer to mlm, but this one is to sst2"),
        (found, "no results of lth_scale.transfer"),
    ):
        with pytest.raises(BadInput, match=said):
            transfer(1, compare_with=directory)
    assert not (tmp_path / "transfer").exists()


def test_the_saved_network_of_an_earlier_ticket_equals_that_of_the_search(search, transfer):
    found = search(seed=7, keep_theta="1")  # keeps round 0's network beside the last one's
    ticket = found / "rounds/00/ticket.safetensors"
    out = transfer(7, 8, ticket=ticket)
    with pytest.raises(BadInput, match="--keep_network"):
        locate(str(out))
    assert transfer(7, 8, ticket=ticket, keep_network=True) == out
    assert [path.name for path in out.glob("seeds/*/model")] == ["model"]  # the first seed's alone
    kept, searched = (
        load_file(each / "model/model.safetensors")
        for each in (out / "seeds/07", found / "rounds/00")
    )
    assert kept.keys() == searched.keys() and all(
        torch.equal(kept[name], searched[name]) for name in kept
    )
    assert locate(str(out)).ticket == out / "seeds/07/ticket.safetensors"


def test_one_shot_has_the_pattern_of_the_ticket(search, transfer):
    found = search(pattern="2:4", target_sparsity=0.5, prune_rate=0.25, max_steps=1)
    out = transfer(1, ticket=found, control="one_shot", max_steps=1)
    used, ticket = (
        Ticket.load(out / "seeds/01/ticket.safetensors"),
        Ticket.load(found / "ticket.safetensors"),
    )
    assert used.pruned == ticket.pruned and used.arguments["pattern"] == "2:4"
    assert all((mask.view(-1, 4).sum(1) == 2).all() for mask in used.masks.values())


def test_one_shot_has_the_scope_of_the_ticket_or_of_the_flag(search, transfer, tmp_path):
    found = search(
        scope="layerwise", target_sparsity=0.5, prune_rate=0.5, max_steps=0, control="one_shot"
    )
    beside = transfer(1, ticket=found, control="one_shot", max_steps=0)
    plain = {"control": "one_shot", "target_sparsity": 0.5, "max_steps": 0}
    alone = transfer(1, **plain, scope="layerwise", output_dir=tmp_path / "alone")
    spread = transfer(1, **plain, output_dir=tmp_path / "spread")
    places = (
        found / "controls/one_shot/01",
        beside / "seeds/01",
        alone / "seeds/01",
        spread / "seeds/01",
    )
    tickets = [Ticket.load(place / "ticket.safetensors") for place in places]
    assert [ticket.arguments["scope"] for ticket in tickets] == ["layerwise"] * 3 + ["global"]
    shares = [
        {round(float(mask.float().mean()), 2) for mask in ticket.masks.values()}
        for ticket in tickets
    ]
    assert shares[:3] == [{0.5}] * 3 and len(shares[3]) > 1

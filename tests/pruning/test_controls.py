"""Each control does what it says, and the same again with the same seed."""

from dataclasses import replace

import pytest
import torch
import transformers as hf

from lth_scale.pruning.controls import Subnetwork, pruned
from lth_scale.pruning.prunable_set import prunable
from lth_scale.pruning.registries import CONTROLS, Budget


def network(layers: int = 4) -> hf.PreTrainedModel:
    torch.manual_seed(1)
    config = hf.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=20,
        num_labels=3,
    )
    model = hf.BertForSequenceClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape))  # as after pre-training: no two alike
    return model


@pytest.fixture
def subnetwork() -> Subnetwork:
    model = network()
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    shares = torch.linspace(0.2, 0.8, len(prunable(model)))
    masks = {
        name: torch.rand(weight.shape, generator=generator) > share
        for (name, weight), share in zip(prunable(model).items(), shares, strict=True)
    }
    return Subnetwork(weights, masks, {name: f"bert.{name}" for name in masks}, model)


def unpruned(model, prefix: str = "bert.") -> Subnetwork:
    """The model as a subnetwork that keeps all weights."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    masks = {
        name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in prunable(model).items()
    }
    return Subnetwork(weights, masks, {name: f"{prefix}{name}" for name in masks}, model)


def equal(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_is_deterministic_and_does_not_modify_its_input(control, subnetwork):
    weights = {name: weight.clone() for name, weight in subnetwork.weights.items()}
    masks = {name: mask.clone() for name, mask in subnetwork.masks.items()}
    first, again, other = (CONTROLS[control].make(subnetwork, seed) for seed in (1, 1, 2))
    assert equal(first.weights, again.weights) and equal(first.masks, again.masks)
    moves = control not in ("none", "one_shot", "dense_long", "dense_restarts")
    assert moves != (equal(first.weights, other.weights) and equal(first.masks, other.masks))
    assert equal(subnetwork.weights, weights) and equal(subnetwork.masks, masks)
    assert [*first.weights] == [*weights] and [*first.masks] == [*masks]


@pytest.mark.parametrize("control", ["random_mask", "random_layerwise", "one_shot"])
def test_a_control_of_the_mask_keeps_the_exact_count_and_the_weights(control, subnetwork):
    result = CONTROLS[control].make(subnetwork, 3)
    assert pruned(result.masks.values()) == pruned(subnetwork.masks.values())
    assert equal(result.weights, subnetwork.weights) and not equal(result.masks, subnetwork.masks)


@pytest.mark.parametrize("control", ["dense_long", "dense_restarts"])
def test_a_reference_with_a_budget_keeps_all_weights_of_theta(control, subnetwork):
    result = CONTROLS[control].make(subnetwork, 3)
    assert pruned(result.masks.values()) == 0 < pruned(subnetwork.masks.values())
    assert equal(result.weights, subnetwork.weights)


def test_a_budget_counts_the_rounds_and_the_training_of_the_ticket():
    long, restarts = (CONTROLS[name].budget for name in ("dense_long", "dense_restarts"))
    assert long(3) == Budget(length=4) and restarts(3) == Budget(restarts=4)
    assert long(3).total == restarts(3).total == 4
    plain = [name for name, control in CONTROLS.items() if control.budget is None]
    assert {*CONTROLS} - {*plain} == {"dense_long", "dense_restarts"}


def test_a_layerwise_random_mask_keeps_the_count_of_each_matrix(subnetwork):
    result = CONTROLS["random_layerwise"].make(subnetwork, 3)
    assert all(
        pruned([result.masks[name]]) == pruned([mask]) for name, mask in subnetwork.masks.items()
    )
    spread = CONTROLS["random_mask"].make(subnetwork, 3)
    shares = [pruned([mask]) / mask.numel() for mask in spread.masks.values()]
    assert max(shares) - min(shares) < 0.2 < 0.6  # the ticket's go from 0.2 to 0.8


def test_one_shot_prunes_the_smallest_of_theta_zero(subnetwork):
    result = CONTROLS["one_shot"].make(subnetwork, 3)
    kept_weights = torch.cat(
        [subnetwork.matrix(name)[mask].abs() for name, mask in result.masks.items()]
    )
    pruned_weights = torch.cat(
        [subnetwork.matrix(name)[~mask].abs() for name, mask in result.masks.items()]
    )
    assert pruned_weights.max() <= kept_weights.min()


def test_one_shot_uses_the_scope_of_the_tickets_search(subnetwork):
    small = {
        name: weight * (1e-3 if "pooler" in name else 1)
        for name, weight in subnetwork.weights.items()
    }
    subnetwork = replace(subnetwork, weights=small)
    spread, alike = (
        CONTROLS["one_shot"].make(replace(subnetwork, scope=scope), 3).masks
        for scope in ("global", "layerwise")
    )
    total = [pruned(masks.values()) for masks in (subnetwork.masks, spread, alike)]
    assert total[0] == total[1] == total[2]
    share = total[0] / sum(mask.numel() for mask in subnetwork.masks.values())
    assert not any(mask.any() for name, mask in spread.items() if "pooler" in name)  # cut through
    for name, mask in alike.items():
        assert abs(pruned([mask]) - share * mask.numel()) <= 1
        assert (
            subnetwork.matrix(name)[~mask].abs().max() <= subnetwork.matrix(name)[mask].abs().min()
        )


def test_reinit_draws_from_the_models_own_initializer(subnetwork):
    result = CONTROLS["reinit"].make(subnetwork, 3)
    assert equal(result.masks, subnetwork.masks)
    drawn = torch.cat(
        [weight.flatten() for name, weight in result.weights.items() if weight.ndim == 2]
    )
    assert float(drawn.std()) == pytest.approx(subnetwork.model.config.initializer_range, rel=0.05)
    for name, weight in result.weights.items():
        assert not torch.equal(
            weight, subnetwork.weights[name]
        )  # embeddings, head, LayerNorm and biases too
        if "LayerNorm.weight" in name:
            assert (weight == 1).all()
        if name.endswith("bias"):
            assert (weight == 0).all()


def test_shuffled_layers_move_as_a_whole_and_nothing_else_moves(subnetwork):
    result = CONTROLS["shuffle_layers"].make(subnetwork, 3)
    moved = {}
    for layer in range(4):
        kinds = [
            name.split(f"layer.{layer}.")[1]
            for name in subnetwork.masks
            if f"layer.{layer}." in name
        ]
        sources = {
            source
            for kind in kinds
            for source in range(4)
            if torch.equal(
                result.matrix(f"encoder.layer.{layer}.{kind}"),
                subnetwork.matrix(f"encoder.layer.{source}.{kind}"),
            )
        }
        assert len(sources) == 1 and len(kinds) == 6
        moved[layer] = sources.pop()
    assert sorted(moved.values()) == [0, 1, 2, 3] and moved != {i: i for i in range(4)}
    inside = {subnetwork.names[name] for name in subnetwork.masks if ".layer." in name}
    assert all(
        torch.equal(result.weights[name], w)
        for name, w in subnetwork.weights.items()
        if name not in inside
    )


@pytest.mark.parametrize("seed", range(8))
def test_shuffled_layers_are_never_in_their_old_order(seed):
    subnetwork = unpruned(network(layers=2))
    result = CONTROLS["shuffle_layers"].make(subnetwork, seed)
    name = "encoder.layer.{}.output.dense.weight"
    assert torch.equal(result.matrix(name.format(0)), subnetwork.matrix(name.format(1)))


def test_one_layer_cannot_be_shuffled():
    subnetwork = unpruned(network(layers=1))
    with pytest.raises(ValueError, match="--control shuffle_layers"):
        CONTROLS["shuffle_layers"].make(subnetwork, 1)


def test_weights_shuffled_within_a_matrix_are_the_same_multiset(subnetwork):
    result = CONTROLS["shuffle_within"].make(subnetwork, 3)
    inside = {subnetwork.names[name] for name in subnetwork.masks}
    for name, weight in subnetwork.weights.items():
        assert torch.equal(result.weights[name].flatten().sort()[0], weight.flatten().sort()[0])
        assert torch.equal(result.weights[name], weight) == (name not in inside)


@pytest.mark.parametrize("family", ["RobertaModel", "DistilBertModel"])
def test_layers_are_found_in_other_families(family):
    sizes = {"vocab_size": 30, "max_position_embeddings": 20}
    if family == "DistilBertModel":
        sizes |= {"dim": 8, "n_layers": 3, "n_heads": 2, "hidden_dim": 12}
    else:
        sizes |= {
            "hidden_size": 8,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 12,
        }
    model = getattr(hf, family)(getattr(hf, family.replace("Model", "Config"))(**sizes))
    subnetwork = unpruned(model, prefix="")
    result = CONTROLS["shuffle_layers"].make(subnetwork, 1)
    assert not equal(result.weights, subnetwork.weights)

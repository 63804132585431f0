"""The exact smallest magnitudes, ties by (parameter order, flat index)."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune as torch_prune

from lth_scale.pruning import threshold

LEVELS = [0.0, -0.0, 1e-45, -1e-40, 1e-8, 0.5, -0.5, 1.0, -1.0, 3.4e38]


def dense_reference(weights: dict, keep: dict, count: int) -> dict:
    """A stable sort of everything: pruned weights first, then by |w|, then by position."""
    flat = torch.cat([w.flatten() for w in weights.values()]).abs().double()
    kept = torch.cat([m.flatten() for m in keep.values()])
    order = torch.where(kept, flat, -1.0).sort(stable=True).indices
    mask = torch.ones(len(flat), dtype=torch.bool)
    mask[order[:count]] = False
    parts = mask.split([w.numel() for w in weights.values()])
    return {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}


def ones(weights: dict) -> dict:
    return {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}


def pruned(weights: dict, keep: dict, count: int, ranks=threshold.ALONE) -> tuple[dict, float]:
    """(new masks, threshold); `keep` stays as it is."""
    masks = {name: mask.clone() for name, mask in keep.items()}
    return masks, threshold.smallest(weights, masks, count, ranks)


@st.composite
def problems(draw, ranks: int = 1):
    """(weights, number pruned, number to prune, where ranks cut the matrices into pieces)."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=4))
    element = st.one_of(
        st.sampled_from(LEVELS), st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
    weights = {
        f"w{i}": torch.tensor(
            draw(st.lists(element, min_size=r * c, max_size=r * c)), dtype=torch.float32
        ).view(r, c)
        for i, (r, c) in enumerate(shapes)
    }
    total = sum(r * c for r, c in shapes)
    first = draw(st.integers(0, total))
    inner = {
        name: sorted(draw(st.integers(0, w.numel())) for _ in range(ranks - 1))
        for name, w in weights.items()
    }
    cuts = {name: [0, *places, weights[name].numel()] for name, places in inner.items()}
    return weights, first, draw(st.integers(first, total)), cuts


@pytest.mark.parametrize("sample", [threshold.SAMPLE, 4])
@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_equals_a_stable_sort_for_any_shapes_ties_zeros_denormals_and_amounts(sample, problem):
    """A sample of 4 nearly always misses and nothing is collected: then all are counted."""
    weights, first, second, _ = problem
    keep = dense_reference(weights, ones(weights), first)
    expected = dense_reference(weights, keep, second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threshold, "SAMPLE", sample)
        masks, cut = pruned(weights, keep, second)
    assert all(torch.equal(masks[name], expected[name]) for name in weights)
    newly = torch.cat([w[keep[n] & ~masks[n]] for n, w in weights.items()]).abs()
    assert cut == (newly.max().item() if len(newly) else 0.0)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.999, 1.0])
def test_equals_a_stable_sort_if_only_a_part_of_the_weights_is_sampled(spread, sparsity):
    """600,000 weights, of which one in twenty is sampled. With a spread of 0 all of them tie."""
    torch.manual_seed(0)
    weights = {
        name: 1 + spread * torch.randn(200, 1000) * scale
        for name, scale in (("a", 1.0), ("b", 3.0), ("c", 0.1))
    }
    weights["b"][:, ::3] = 1.0
    expected = dense_reference(weights, ones(weights), round(sparsity * 600_000))
    masks = ones(weights)
    threshold.prune(weights, masks, sparsity, "global")
    assert all(torch.equal(masks[name], expected[name]) for name in weights)


@pytest.mark.parametrize("ties", [False, True])
def test_ten_rounds_give_the_masks_of_torch_global_unstructured(ties):
    torch.manual_seed(3)
    layers = [
        torch.nn.Linear(40, 30, bias=False),
        torch.nn.Linear(20, 50, bias=False),
        torch.nn.Linear(10, 80),
    ]
    for layer in layers:
        with (
            torch.no_grad()
        ):  # distinct magnitudes over all three: torch.prune's choice is then unique
            layer.weight.mul_(torch.rand_like(layer.weight) + 0.5)
    if ties:
        for layer in layers:
            layer.weight.data = (layer.weight.data * 40).round() / 40
    weights = {str(i): layer.weight.detach().clone() for i, layer in enumerate(layers)}
    total = sum(w.numel() for w in weights.values())
    keep = ones(weights)
    for k in range(9):
        torch_prune.global_unstructured(
            [(layer, "weight") for layer in layers],
            pruning_method=torch_prune.L1Unstructured,
            amount=1 / (10 - k),
        )
        cut = threshold.prune(weights, keep, (k + 1) / 10, "global")
        assert sum(int((~m).sum()) for m in keep.values()) == round((k + 1) / 10 * total)
        for name, layer in zip(weights, layers, strict=True):
            differ = keep[name] != layer.weight_mask.bool()
            if ties:  # torch may choose others among equals, and nothing else
                assert (weights[name][differ].abs() == cut).all()
            else:
                assert not differ.any()


def test_ties_go_by_parameter_order_then_flat_index():
    weights = {"a": torch.tensor([[2.0, 1.0]]), "b": torch.tensor([[-1.0, 1.0]])}
    masks, cut = pruned(weights, ones(weights), 2)
    assert masks["a"].tolist() == [[True, False]]
    assert masks["b"].tolist() == [[False, True]]
    assert cut == 1.0


def test_a_kept_zero_is_pruned_after_the_weights_that_are_pruned_already():
    weights = {"a": torch.tensor([[0.0, 0.0, 5.0]])}
    keep = {"a": torch.tensor([[True, False, True]])}
    masks, _ = pruned(weights, keep, 1)
    assert masks["a"].tolist() == [[True, False, True]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_refused_by_name(bad):
    weights = {"fine": torch.ones(2, 2), "broken.weight": torch.tensor([[1.0, bad]])}
    with pytest.raises(ValueError, match=r"broken\.weight.*NaN or Inf"):
        pruned(weights, ones(weights), 1)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.37, 0.9, 1.0])
def test_layerwise_counts_are_even_and_their_total_exact(sparsity):
    torch.manual_seed(0)
    weights = {"a": torch.randn(7, 9), "b": torch.randn(11, 5) * 100, "c": torch.randn(3, 3)}
    masks = ones(weights)
    threshold.prune(weights, masks, sparsity, "layerwise")
    pruned = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert sum(pruned.values()) == round(sparsity * (63 + 55 + 9))
    assert all(abs(pruned[name] - sparsity * w.numel()) <= 1 for name, w in weights.items())
    for name, mask in masks.items():
        smallest = numpy.sort(weights[name].abs().numpy().ravel())[: pruned[name]]
        assert numpy.array_equal(numpy.sort(weights[name][~mask].abs().numpy()), smallest)


def test_half_precision_weights_are_ordered_exactly():
    weights = {"a": torch.randn(20, 20).bfloat16()}
    masks, _ = pruned(weights, ones(weights), 123)
    assert torch.equal(masks["a"], dense_reference(weights, ones(weights), 123)["a"])

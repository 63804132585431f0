"""Patterns and scores: N:M and block masks, and Taylor scores, by hand and by their definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lth_scale import Ticket
from lth_scale.config.errors import BadInput
from lth_scale.distributed.ddp import replicated
from lth_scale.pruning import structured
from lth_scale.pruning.patterns import PruningStep
from lth_scale.pruning.registries import SCORES, check_pattern, parse_pattern


def keep_all(weights: dict) -> dict:
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


def prune(weights: dict, keep: dict, sparsity: float, pattern: str, **options) -> float:
    return parse_pattern(pattern).prune(PruningStep(weights, keep, sparsity, **options))


def random_weights() -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        f"w{i}": torch.randn(shape, generator=generator)
        for i, shape in enumerate([(8, 12), (4, 16), (12, 4)])
    }


def test_two_of_four_are_the_two_largest_of_each_four():
    weights = {"w": torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.1, 0.2, -0.4, 0.3]])}
    keep = keep_all(weights)
    assert prune(weights, keep, 0.5, "2:4") == 2.0
    assert keep["w"].tolist() == [[False, True, True, False, False, False, True, True]]


def test_below_the_patterns_sparsity_the_smallest_weights_that_it_will_prune_go_first():
    weights = {"w": torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.1, 0.2, -0.4, 0.3]])}
    keep = keep_all(weights)
    prune(weights, keep, 0.375, "2:4")  # of 0.3 and 1.0, the pattern spares 0.3
    assert keep["w"].tolist() == [[False, True, True, True, False, False, True, True]]


@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize(
    ("pattern", "kept", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:4", 3, 4), ("1:2", 1, 2)]
)
def test_n_of_m_has_exact_counts_and_nested_masks_at_every_sparsity(scope, pattern, kept, of):
    weights, share = random_weights(), 1 - kept / of
    keep, total = keep_all(weights), sum(weight.numel() for weight in weights.values())
    for sparsity in (0.1, share / 2, share, (1 + share) / 2):
        before = {name: mask.clone() for name, mask in keep.items()}
        prune(weights, keep, sparsity, pattern, scope=scope)
        assert all((before[name] >= mask).all() for name, mask in keep.items())
        assert sum(int((~mask).sum()) for mask in keep.values()) == round(sparsity * total)
        remaining = torch.cat([mask.view(-1, of).sum(1) for mask in keep.values()])
        if sparsity <= share:
            assert (remaining >= kept).all()
        if sparsity >= share:
            assert (remaining <= kept).all()
        if sparsity == share:
            assert (remaining == kept).all()


def test_the_score_of_a_block_is_the_sum_of_its_magnitudes():
    left, right = [1.0] * 4 + [2.0] * 4, [9.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.9]
    weights = {"w": torch.tensor([left, right]).T.contiguous()}
    keep = keep_all(weights)
    assert prune(weights, keep, 0.5, "block:4x1") == 4.0
    assert keep["w"].tolist() == [[False, True]] * 4 + [[True, False]] * 4


@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize(
    ("pattern", "rows", "columns"), [("block:4x1", 4, 1), ("block:2x4", 2, 4), ("block:1x2", 1, 2)]
)
def test_blocks_are_pruned_whole_with_exact_counts_and_nested_masks(scope, pattern, rows, columns):
    weights = random_weights()
    keep, total = keep_all(weights), sum(weight.numel() for weight in weights.values())
    for sparsity in (0.0, 0.3, 0.7, 1.0):
        before = {name: mask.clone() for name, mask in keep.items()}
        prune(weights, keep, sparsity, pattern, scope=scope)
        assert all((before[name] >= mask).all() for name, mask in keep.items())
        for mask in keep.values():
            tiles = (
                mask.view(mask.shape[0] // rows, rows, mask.shape[1] // columns, columns)
                .transpose(1, 2)
                .flatten(2)
            )
            assert ((tiles.all(2)) | (~tiles).all(2)).all()
        size = rows * columns
        assert sum(int((~mask).sum()) for mask in keep.values()) == size * round(
            sparsity * total / size
        )


def test_under_accumulated_taylor_blocks_and_groups_lose_the_weights_that_moved_most_towards_zero():
    moved = {"w": torch.tensor([[1.0, -5.0, 2.0, -1.0], [-3.0, 1.0, 0.5, 0.4]])}
    keep = keep_all(moved)
    cut = prune(moved, keep, 0.5, "block:2x1", score=SCORES["accumulated_taylor"])
    assert keep["w"].tolist() == [[False, False, True, True]] * 2  # sums -2, -4, 2.5 and -0.6
    assert cut == pytest.approx(-2.0, rel=1e-6)
    keep = keep_all(moved)
    prune(moved, keep, 0.5, "2:4", score=SCORES["accumulated_taylor"])
    assert keep["w"].tolist() == [[True, False, True, False], [False, True, True, False]]


@pytest.mark.parametrize("pattern", ["2:4", "block:4x1"])
def test_a_nan_is_an_error_that_names_the_matrix(pattern):
    weights = random_weights()
    weights["w1"][2, 3] = float("nan")
    with pytest.raises(ValueError, match="w1: holds NaN or Inf"):
        prune(weights, keep_all(weights), 0.5, pattern)


def test_a_pattern_that_does_not_divide_a_matrix_is_refused():
    shapes = {"fine": torch.Size([8, 8]), "odd": torch.Size([6, 8])}
    check_pattern("2:4", shapes)
    message = r"--pattern block:4x1: does not divide odd of shape \(6, 8\)"
    with pytest.raises(BadInput, match=message):
        check_pattern("block:4x1", shapes)


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("block:4x1", 0.4)])
def test_the_last_ticket_of_a_search_has_its_pattern(pattern, sparsity, search):
    target = None if pattern == "2:4" else sparsity
    out = search(pattern=pattern, prune_rate=0.25, max_steps=1, target_sparsity=target)
    ticket = Ticket.load(out / "ticket.safetensors")
    assert ticket.sparsity == pytest.approx(sparsity, abs=0.002)
    for mask in ticket.masks.values():
        tiles = (
            mask.view(-1, 4)
            if pattern == "2:4"
            else mask.view(mask.shape[0] // 4, 4, -1).transpose(1, 2).reshape(-1, 4)
        )
        counts = {2} if pattern == "2:4" else {0, 4}
        assert set(tiles.sum(1).tolist()) <= counts


def test_a_search_under_a_pattern_starts_only_from_a_ticket_of_that_pattern(search, tmp_path):
    plain = search(output_dir=tmp_path / "plain", max_steps=1, target_sparsity=0.2)
    with pytest.raises(BadInput, match="--pattern 2:4: the ticket"):
        search(output_dir=tmp_path / "o", pattern="2:4", ticket=plain, target_sparsity=0.5)
    half = search(output_dir=tmp_path / "half", max_steps=1, pattern="2:4", target_sparsity=0.5)
    more = search(
        output_dir=tmp_path / "more", max_steps=1, pattern="2:4", ticket=half, target_sparsity=0.6
    )
    assert Ticket.load(more / "ticket.safetensors").sparsity == pytest.approx(0.6, abs=1e-3)


def test_accumulated_taylor_is_minus_rate_times_gradient_times_weight_summed_over_steps():
    weight = torch.nn.Parameter(torch.tensor([[2.0, -1.0, 3.0, 0.0]]))
    pieces = {"w": replicated(weight, torch.optim.SGD([weight]))}
    moved = {"w": torch.zeros(4)}
    for gradient in ([1.0, 1.0, 0.0, 5.0], [-0.5, 1.0, 1.0, 5.0]):
        weight.grad = torch.tensor([gradient])
        structured.accumulate(moved, pieces, 0.1)
    # 2: pulled to zero by 0.1·(−2 + 1); −1: away from it by 0.1·(1 + 1); 3: towards it by 0.3
    assert torch.allclose(moved["w"], torch.tensor([-0.1, 0.2, -0.3, 0.0]))


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=40))
def test_magnitudes_sort_as_the_scores_do(numbers):
    score = torch.tensor(numbers, dtype=torch.float32)
    magnitude = structured.to_magnitude(score)
    assert (magnitude > 0).all() and magnitude.isfinite().all()
    order = score.argsort(stable=True)
    assert (magnitude[order].diff() >= 0).all()
    for before, after in zip(score.tolist(), magnitude.tolist(), strict=True):
        assert structured.from_magnitude(after) == pytest.approx(before, rel=2**-22, abs=1e-44)


def test_nan_and_infinite_scores_become_nan_and_a_threshold_of_zero_stays_zero():
    assert structured.to_magnitude(torch.tensor([torch.nan, torch.inf, -torch.inf])).isnan().all()
    assert structured.from_magnitude(0.0) == 0.0


def test_a_search_by_accumulated_taylor_prunes_the_weights_that_moved_most_towards_zero(
    search, monkeypatch
):
    seen = []
    accumulate = structured.accumulate

    def watch(totals, pieces, rate):
        accumulate(totals, pieces, rate)
        seen.append({name: score.clone() for name, score in totals.items()})

    monkeypatch.setattr(structured, "accumulate", watch)
    out = search(score="accumulated_taylor", target_sparsity=0.3, prune_rate=0.15)
    for k in (1, 2):
        before, after = (
            Ticket.load(out / f"rounds/0{j}/ticket.safetensors").masks for j in (k - 1, k)
        )
        total = torch.cat([seen[4 * k - 1][name][before[name].view(-1)] for name in before])
        newly = torch.cat([(before[name] & ~after[name])[before[name]] for name in before])
        assert total[newly].max() <= total[~newly].min()

"""structured.py: N:M and block masks, by hand and by their definition."""

import pytest
import torch

from lth_scale.config.errors import BadInput
from lth_scale.pruning import structured
from lth_scale.pruning.registries import SCORES, check_pattern, parse_pattern


def keep_all(weights: dict) -> dict:
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


def random_weights() -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        f"w{i}": torch.randn(shape, generator=generator)
        for i, shape in enumerate([(8, 12), (4, 16), (12, 4)])
    }


def test_two_of_four_are_the_two_largest_of_each_four():
    weights = {"w": torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.1, 0.2, -0.4, 0.3]])}
    keep = keep_all(weights)
    assert structured.prune(weights, keep, 0.5, "global", parse_pattern("2:4")) == 2.0
    assert keep["w"].tolist() == [[False, True, True, False, False, False, True, True]]


def test_before_the_pattern_is_reached_the_smallest_that_it_will_prune_go_first():
    weights = {"w": torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.1, 0.2, -0.4, 0.3]])}
    keep = keep_all(weights)
    structured.prune(
        weights, keep, 0.375, "global", parse_pattern("2:4")
    )  # of 0.3 and 1.0, the pattern spares 0.3
    assert keep["w"].tolist() == [[False, True, True, True, False, False, True, True]]


@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize(
    ("pattern", "kept", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:4", 3, 4), ("1:2", 1, 2)]
)
def test_n_of_m_holds_in_every_group_on_the_way_counts_are_exact_and_masks_nested(
    scope, pattern, kept, of
):
    weights, share = random_weights(), 1 - kept / of
    keep, total = keep_all(weights), sum(weight.numel() for weight in weights.values())
    for sparsity in (0.1, share / 2, share, (1 + share) / 2):
        if sparsity <= share / 2 and sparsity < 0.1:
            continue
        before = {name: mask.clone() for name, mask in keep.items()}
        structured.prune(weights, keep, sparsity, scope, parse_pattern(pattern))
        assert all((before[name] >= mask).all() for name, mask in keep.items())
        assert sum(int((~mask).sum()) for mask in keep.values()) == round(sparsity * total)
        left = torch.cat([mask.view(-1, of).sum(1) for mask in keep.values()])
        if sparsity <= share:
            assert (left >= kept).all()
        if sparsity >= share:
            assert (left <= kept).all()
        if sparsity == share:
            assert (left == kept).all()


def test_a_block_is_worth_the_sum_of_its_magnitudes():
    weights = {
        "w": torch.tensor(
            [
                [1.0, 9.0],
                [1.0, 0.0],
                [1.0, 0.0],
                [1.0, 0.0],
                [2.0, 1.0],
                [2.0, 1.0],
                [2.0, 1.0],
                [2.0, 0.9],
            ]
        )
    }
    keep = keep_all(weights)
    assert structured.prune(weights, keep, 0.5, "global", parse_pattern("block:4x1")) == 4.0
    assert keep["w"].tolist() == [[False, True]] * 4 + [[True, False]] * 4


@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize(
    ("pattern", "rows", "columns"), [("block:4x1", 4, 1), ("block:2x4", 2, 4), ("block:1x2", 1, 2)]
)
def test_blocks_are_constant_nested_and_exactly_as_many_as_asked(scope, pattern, rows, columns):
    weights = random_weights()
    keep, total = keep_all(weights), sum(weight.numel() for weight in weights.values())
    for sparsity in (0.0, 0.3, 0.7, 1.0):
        before = {name: mask.clone() for name, mask in keep.items()}
        structured.prune(weights, keep, sparsity, scope, parse_pattern(pattern))
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


def test_under_movement_a_block_is_worth_its_sum_and_a_group_loses_what_moved_to_zero_most():
    moved = {"w": torch.tensor([[1.0, -5.0, 2.0, -1.0], [-3.0, 1.0, 0.5, 0.4]])}
    keep = keep_all(moved)
    cut = structured.prune(
        moved, keep, 0.5, "global", parse_pattern("block:2x1"), score=SCORES["movement"]
    )
    assert keep["w"].tolist() == [[False, False, True, True]] * 2  # sums -2, -4, 2.5 and -0.6
    assert cut == pytest.approx(-2.0, rel=1e-6)
    keep = keep_all(moved)
    structured.prune(moved, keep, 0.5, "global", parse_pattern("2:4"), score=SCORES["movement"])
    assert keep["w"].tolist() == [[True, False, True, False], [False, True, True, False]]


@pytest.mark.parametrize("pattern", ["2:4", "block:4x1"])
def test_a_nan_is_an_error_that_names_the_matrix(pattern):
    weights = random_weights()
    weights["w1"][2, 3] = float("nan")
    with pytest.raises(ValueError, match="w1: holds NaN or Inf"):
        structured.prune(weights, keep_all(weights), 0.5, "global", parse_pattern(pattern))


def test_a_pattern_that_does_not_divide_a_matrix_is_refused():
    shapes = {"fine": torch.Size([8, 8]), "odd": torch.Size([6, 8])}
    check_pattern("2:4", shapes)
    with pytest.raises(
        BadInput, match=r"--pattern block:4x1: does not divide odd of shape \(6, 8\)"
    ):
        check_pattern("block:4x1", shapes)


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("block:4x1", 0.4)])
def test_a_search_under_a_pattern_ends_with_it(pattern, sparsity, search):
    from lth_scale import Ticket

    asked = {} if pattern == "2:4" else {"target_sparsity": sparsity}
    out = search(
        pattern=pattern, prune_rate=0.25, max_steps=1, **({"target_sparsity": None} | asked)
    )
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


def test_a_pattern_goes_on_from_a_ticket_of_its_own_kind_alone(search, tmp_path):
    plain = search(output_dir=tmp_path / "plain", max_steps=1, target_sparsity=0.2)
    with pytest.raises(BadInput, match="--pattern 2:4: the ticket"):
        search(output_dir=tmp_path / "o", pattern="2:4", ticket=plain, target_sparsity=0.5)
    half = search(output_dir=tmp_path / "half", max_steps=1, pattern="2:4", target_sparsity=0.5)
    more = search(
        output_dir=tmp_path / "more", max_steps=1, pattern="2:4", ticket=half, target_sparsity=0.6
    )
    from lth_scale import Ticket

    assert Ticket.load(more / "ticket.safetensors").sparsity == pytest.approx(0.6, abs=1e-3)

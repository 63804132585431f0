"""Similarity of masks by hand, and its chance level by drawing random masks."""

import math

import pytest
import torch

from lth_scale import Ticket, chance_similarity
from lth_scale.pruning.similarity import Shared, by_layer_and_kind, count, total

LAYER = "encoder.layer.{}.attention.self.{}.weight"


def bits(*kept: int) -> torch.Tensor:
    return torch.tensor([kept]).bool()


def test_similarity_is_the_intersection_over_the_union_of_kept_weights():
    ours = Ticket({"a": bits(1, 1, 1, 0), "b": bits(1, 0)})
    theirs = Ticket({"a": bits(1, 0, 0, 1), "b": bits(1, 1)})
    assert ours.similarity(theirs) == {"a": 1 / 4, "b": 1 / 2, "all": 2 / 6}
    assert ours.similarity(theirs) == theirs.similarity(ours)
    assert ours.overlap(theirs) == {"a": 1 / 3, "b": 1.0, "all": 2 / 4}  # another measure
    assert ours.similarity(ours)["all"] == 1.0
    assert ours.shared(theirs)["all"] == Shared(both=2, first=4, second=4, size=6)


def test_only_matrices_of_both_tickets_are_compared():
    one = Ticket({"a": bits(1, 1), "pooler.dense.weight": bits(1, 0)})
    assert one.similarity(Ticket({"a": bits(1, 0)})) == {"a": 0.5, "all": 0.5}


def test_tickets_of_two_bases_or_networks_are_compared_as_by_overlap():
    one, other = (Ticket({"a": bits(1, 1)}, base_sha256=letter * 64) for letter in "ab")
    with pytest.raises(ValueError, match="tickets of two bases"):
        one.similarity(other)
    assert one.similarity(other, allow_other_weights=True)["all"] == 1
    with pytest.raises(ValueError, match="share no matrix"):
        one.similarity(Ticket({"b": bits(1, 1)}))


def test_masks_that_keep_nothing_have_no_similarity():
    nothing, something = Ticket({"a": bits(0, 0)}), Ticket({"a": bits(1, 0)})
    assert math.isnan(nothing.similarity(nothing)["all"])
    assert math.isnan(nothing.overlap(something)["all"])
    assert nothing.similarity(something)["all"] == 0 == something.overlap(nothing)["all"]
    assert math.isnan(chance_similarity(1.0, 1.0)) and chance_similarity(1.0, 0.5) == 0


@pytest.mark.parametrize(("sparsity", "other"), [(0.7, 0.7), (0.5, 0.9), (0.0, 0.3), (0.0, 0.0)])
def test_the_chance_level_is_that_of_independent_random_masks(sparsity, other):
    p, q = 1 - sparsity, 1 - other
    assert chance_similarity(sparsity, other) == pytest.approx(p * q / (p + q - p * q))
    generator, size = torch.Generator().manual_seed(1), 1_000_000
    first, second = (torch.rand(size, generator=generator) >= s for s in (sparsity, other))
    drawn = count(first, second)
    assert drawn.similarity == pytest.approx(chance_similarity(sparsity, other), abs=0.002)
    assert drawn.chance == pytest.approx(drawn.similarity, abs=0.002)


def test_counts_are_added_by_layer_and_by_kind():
    parts = {
        LAYER.format(0, "query"): Shared(1, 2, 3, 10),
        LAYER.format(0, "key"): Shared(2, 4, 4, 10),
        LAYER.format(1, "query"): Shared(0, 1, 1, 10),
        "pooler.dense.weight": Shared(5, 5, 5, 10),
    }
    layers, kinds = by_layer_and_kind(parts)
    assert layers == {"0": Shared(3, 6, 7, 20), "1": Shared(0, 1, 1, 10)}
    assert kinds == {
        "query": Shared(1, 3, 4, 20),
        "key": Shared(2, 4, 4, 10),
        "pooler": Shared(5, 5, 5, 10),
    }
    assert total(parts.values()) == Shared(8, 12, 13, 40)

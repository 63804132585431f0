"""The exact k-th smallest magnitude of weights that no rank holds whole, and the masks it gives.

A sample brackets the threshold. One streaming pass counts the magnitudes below the bracket and
collects those inside, about 2 % of the weights; a radix selection over all ranks finds the exact
threshold among them. If the bracket misses it, the selection runs over all weights. Ranks exchange
only counts, some tens of kB each.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from lth_scale.distributed.pieces import Ranks
from lth_scale.pruning.bit_patterns import (
    INFINITE,
    Cut,
    between,
    count_below,
    keep_above,
    magnitudes,
    order_statistics,
)

ALONE = Ranks()
SAMPLE = 1 << 18  # weights a threshold, over all ranks
COLLECTED = 20  # at most one weight in 20 is copied as a sample, and one as a candidate
NOTHING = Cut(-1, 0)
ANYTHING = (1, INFINITE - 1)  # a bracket that holds every pattern of a finite weight but 0
Weights = Mapping[str, Tensor]


def prune(
    weights: Weights, keep: Weights, sparsity: float, scope: str, ranks: Ranks = ALONE
) -> float:
    """Update `keep` in place to exactly `round(sparsity × prunable)` pruned weights, as `smallest`.

    scope: `global` for one threshold over all matrices (the paper's), or `layerwise` for one a
    matrix, with counts whose running sum is the rounded running share: their total is exact too.
    """
    sizes = ranks.sum(torch.tensor([mask.numel() for mask in keep.values()])).tolist()
    if scope == "global":
        return smallest(weights, keep, round(sparsity * sum(sizes)), ranks)
    pruned = ranks.sum(torch.tensor([_count_pruned(mask) for mask in keep.values()])).tolist()
    ends = [round(sparsity * sum(sizes[:i])) for i in range(len(sizes) + 1)]
    counts = [max(ends[i + 1] - ends[i], before) for i, before in enumerate(pruned)]
    groups = {name: i for i, name in enumerate(keep)}
    return _Selection(weights, keep, groups, ranks).prune(counts)


def smallest(weights: Weights, keep: Weights, count: int, ranks: Ranks = ALONE) -> float:
    """Prune `count` weights in all, in place: those already pruned, then the smallest |w|.

    weights: this rank's pieces by name, floating point, contiguous. keep: bool tensors of the same
    names, shapes and devices. Every rank passes the same names in the same order; pieces of a name
    follow each other in the order of the ranks and may be empty. Ties at the threshold are broken
    by (order of names, flat index), lowest first, so that masks do not depend on the sharding.

    Returns the largest |w| that was newly pruned; 0.0 if none was. Raises ValueError on all ranks
    if a weight on any of them is NaN or Inf, naming the parameter and the rank.
    """
    return _Selection(weights, keep, dict.fromkeys(keep, 0), ranks).prune([count])


@dataclass
class _Selection:
    """The thresholds of groups of matrices, one a group.

    group: the group's number by name. bracket: of each group, the lowest and the highest pattern
    inside. collected: the patterns inside by name, unless they are too many.
    """

    weights: Weights
    keep: Weights
    group: dict[str, int]
    ranks: Ranks
    bracket: list[tuple[int, int]] = field(default_factory=list)
    collected: dict[str, list[Tensor]] | None = None

    def prune(self, counts: list[int]) -> float:
        """Prune counts[g] weights of each group g in place; return the largest threshold."""
        masks, groups = self.keep.values(), len(counts)
        sizes = self._sum_by_group([mask.numel() for mask in masks], groups)
        pruned = self._sum_by_group([_count_pruned(mask) for mask in masks], groups)
        for count, before, size in zip(counts, pruned, sizes, strict=True):
            assert before <= count <= size, f"{count} of {size}, where {before} are pruned already"
        self.bracket = self._estimate_brackets(counts, sizes)
        cuts = self._find_cuts(counts)
        tied_pruned = [
            count - cut.smaller - (before if cut.bits == 0 else 0)
            for count, cut, before in zip(counts, cuts, pruned, strict=True)
        ]
        bits = {name: cuts[group].bits for name, group in self.group.items()}
        ties = [self._count_ties(name, bits[name]) for name in self.keep]
        quotas = self._tie_quotas(ties, tied_pruned)
        for name, tied, quota in zip(self.keep, ties, quotas, strict=True):
            self._update_mask(name, bits[name], quota, keeps_ties=tied > quota)
        newly = [
            cut.bits
            for cut, count, before in zip(cuts, counts, pruned, strict=True)
            if count > before
        ]
        return float(torch.tensor(max(newly, default=0), dtype=torch.int32).view(torch.float32))

    def _sum_by_group(self, numbers: list[int], groups: int) -> list[int]:
        """The sums over names and ranks of a number for each name."""
        totals = torch.zeros(groups, dtype=torch.int64)
        totals.index_add_(0, torch.tensor([*self.group.values()]), torch.tensor(numbers))
        return self.ranks.sum(totals).tolist()

    def _estimate_brackets(self, counts: list[int], sizes: list[int]) -> list[tuple[int, int]]:
        """Brackets that almost certainly hold the thresholds: four standard errors each way."""
        samples = self._sample(sizes)
        seen = self.ranks.sum(torch.tensor([len(sample) for sample in samples])).tolist()
        brackets = [ANYTHING if count else (INFINITE, INFINITE) for count in counts]
        wanted = []
        for group, (count, size, n) in enumerate(zip(counts, sizes, seen, strict=True)):
            middle, margin = count / max(1, size) * n, 2 * math.sqrt(n) + 1
            if count and n:
                low = max(1, math.floor(middle - margin))
                wanted += [(group, low), (group, min(n, math.ceil(middle + margin)))]
        bounds = [(0, INFINITE - 1)] * len(counts)
        cuts = order_statistics(lambda group: [samples[group]], wanted, bounds, self.ranks)
        pairs = zip(wanted[::2], wanted[1::2], cuts[::2], cuts[1::2], strict=True)
        for (group, low), (_, high), bottom, top in pairs:
            brackets[group] = (
                max(1, bottom.bits) if low > 1 else 1,
                top.bits if high < seen[group] else INFINITE - 1,
            )
        return brackets

    def _sample(self, sizes: list[int]) -> list[Tensor]:
        """The patterns of about SAMPLE weights a group, evenly spaced from a random offset."""
        samples: list[list[Tensor]] = [[torch.empty(0, dtype=torch.int32)] for _ in sizes]
        generator = torch.Generator().manual_seed(self.ranks.index)
        for name, group in self.group.items():
            stride = max(2 * COLLECTED, sizes[group] // SAMPLE) if sizes[group] > SAMPLE else 1
            every = slice(int(torch.randint(stride, (), generator=generator)), None, stride)
            weight, keep = (
                tensors[name].view(-1)[every].contiguous() for tensors in (self.weights, self.keep)
            )
            samples[group] += [bits.clone() for _, bits in magnitudes(weight, keep)]
        return [torch.cat(sample[1:] or sample) for sample in samples]

    def _find_cuts(self, counts: list[int]) -> list[Cut]:
        """The exact threshold of each group: inside its bracket, or anywhere if that misses it."""
        below, inside = self._scan()
        hits = [
            not count or (low == 1 and count <= under) or under < count <= under + within
            for count, under, within, (low, _) in zip(
                counts, below, inside, self.bracket, strict=True
            )
        ]
        if not all(hits):
            self.bracket = [
                bracket if hit else ANYTHING
                for bracket, hit in zip(self.bracket, hits, strict=True)
            ]
            below, inside = self._scan()
        cuts = [NOTHING if not count else Cut(0, 0) for count in counts]
        wanted = [
            (group, count - below[group])
            for group, count in enumerate(counts)
            if count > below[group]
        ]
        selected = order_statistics(self._group_in_bracket, wanted, self.bracket, self.ranks)
        for (group, _), cut in zip(wanted, selected, strict=True):
            cuts[group] = Cut(cut.bits, below[group] + cut.smaller)
        return cuts

    def _scan(self) -> tuple[list[int], list[int]]:
        """Count the patterns of each group below and inside its bracket, and collect the latter."""
        below, inside, self.collected, end = [], [], {}, 0
        capacity = max(SAMPLE, sum(mask.numel() for mask in self.keep.values()) // COLLECTED)
        device = next(iter(self.keep.values())).device
        store = torch.empty(capacity, dtype=torch.int32, device=device)
        infinite = len(self.keep)  # the index of the first name with NaN or Inf
        for i, (name, mask) in enumerate(self.keep.items()):
            low, high = self.bracket[self.group[name]]
            below.append(0)
            inside.append(0)
            start = end
            for _, bits in magnitudes(self.weights[name], mask):
                if int(bits.max()) >= INFINITE:
                    infinite = min(infinite, i)
                below[-1] += count_below(bits, low)
                selected = between(bits, low, high)
                inside[-1] += len(selected)
                if end + len(selected) <= capacity:
                    store[end : end + len(selected)] = selected
                end += len(selected)
            self.collected[name] = [store[start:end]]
        if end > capacity:
            self.collected = None
        self._check_finite(infinite)
        groups = len(self.bracket)
        return self._sum_by_group(below, groups), self._sum_by_group(inside, groups)

    def _check_finite(self, infinite: int) -> None:
        world = self.ranks.world_size
        index, rank = divmod(self.ranks.min(infinite * world + self.ranks.index), world)
        if index < len(self.keep):
            name = [*self.keep][index]
            raise ValueError(
                f"{name}: holds NaN or Inf on rank {rank}, so its weights have no order"
            )

    def _in_bracket(self, name: str) -> Iterable[Tensor]:
        if self.collected is not None:
            return self.collected[name]
        low, high = self.bracket[self.group[name]]
        patterns = magnitudes(self.weights[name], self.keep[name])
        return (between(bits, low, high) for _, bits in patterns)

    def _group_in_bracket(self, group: int) -> Iterator[Tensor]:
        for name in self.keep:
            if self.group[name] == group:
                yield from self._in_bracket(name)

    def _count_ties(self, name: str, cut: int) -> int:
        """How many kept weights of this rank are equal to the threshold."""
        if cut > 0:
            return sum(int((bits == cut).sum()) for bits in self._in_bracket(name))
        if cut < 0:
            return 0
        mask = self.keep[name].view(-1)
        zeros = (mask[part] & (bits == 0) for part, bits in magnitudes(self.weights[name], mask))
        return sum(int(tied.sum()) for tied in zeros)

    def _tie_quotas(self, ties: list[int], tied_pruned: list[int]) -> list[int]:
        """How many of this rank's ties to prune, by name: the first tied_pruned[g] of group g."""
        totals = self.ranks.sum(torch.tensor(ties)).tolist()
        remaining, quotas = list(tied_pruned), []
        for total, group in zip(totals, self.group.values(), strict=True):
            quotas.append(min(total, remaining[group]))
            remaining[group] -= quotas[-1]
        # in each group, at most one name has ties of both kinds, pruned and kept
        split = [i for i, quota in enumerate(quotas) if 0 < quota < totals[i]]
        rank = self.ranks.index if self.ranks.shards > 1 else 0
        held = torch.zeros(len(split), self.ranks.shards, dtype=torch.int64)
        held[:, rank] = torch.tensor([ties[i] for i in split], dtype=torch.int64)
        before = self.ranks.sum(held)[:, :rank].sum(1).tolist() if split else []
        for i, earlier in zip(split, before, strict=True):
            quotas[i] -= earlier
        return [max(0, min(quota, tied)) for quota, tied in zip(quotas, ties, strict=True)]

    def _update_mask(self, name: str, cut: int, quota: int, keeps_ties: bool) -> None:
        """Keep what is above the threshold, and the ties after the first `quota`."""
        mask = self.keep[name].view(-1)
        for part, bits in magnitudes(self.weights[name], mask):
            kept = mask[part]
            tied = (kept & (bits == cut)).nonzero().flatten() if keeps_ties else None
            keep_above(kept, bits, cut)
            if tied is not None:
                kept[tied[quota:]] = True
                quota -= min(quota, len(tied))


def _count_pruned(mask: Tensor) -> int:
    on_cpu = mask.device.type == "cpu"
    kept = numpy.count_nonzero(mask.numpy()) if on_cpu else mask.sum()
    return mask.numel() - int(kept)

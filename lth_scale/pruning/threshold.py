"""The exact k-th smallest magnitude of weights that no rank holds whole, and the masks it gives.

The bit pattern of a non-negative fp32 number, read as an integer, sorts as the number does; a pruned weight
counts as 0. A sample brackets the threshold; one streaming pass counts what lies below the bracket and collects
what lies inside, about 2 % of the weights; four digits of 8 bits, counted over all ranks, then find it exactly.
Where the sample misled, the same counting runs over all weights. What travels are counts, some tens of kB a rank.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from lth_scale.distributed.ranks import Ranks

ALONE = Ranks()
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 21}  # weights looked at together
SAMPLE = 1 << 18  # weights a threshold, over all ranks
COLLECTED = 20  # at most one weight in so many is copied, once as a sample and once as a candidate
DIGITS, BASE = (24, 16, 8, 0), 256  # 31 bits, 8 at a time
INFINITE = 0x7F800000
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Cut:
    """The bit pattern of a threshold, and how many weights of its group have a smaller one."""

    bits: int
    smaller: int


NOTHING = Cut(-1, 0)


def prune(
    weights: Weights, keep: Weights, sparsity: float, scope: str, ranks: Ranks = ALONE
) -> float:
    """Update `keep` in place to exactly `round(sparsity × prunable)` pruned weights; return the threshold.

    scope `global`: one cut through all matrices (the paper's); `layerwise`: one for each matrix, with
    counts whose running sum is the rounded running share, so that the total is exact as well.
    Otherwise as `smallest`.
    """
    sizes = ranks.sum(torch.tensor([mask.numel() for mask in keep.values()])).tolist()
    if scope == "global":
        return smallest(weights, keep, round(sparsity * sum(sizes)), ranks)
    pruned = ranks.sum(torch.tensor([_zeros(mask) for mask in keep.values()])).tolist()
    ends = [round(sparsity * sum(sizes[:i])) for i in range(len(sizes) + 1)]
    counts = [max(ends[i + 1] - ends[i], before) for i, before in enumerate(pruned)]
    return _Selection(weights, keep, {name: i for i, name in enumerate(keep)}, ranks).run(counts)


def smallest(weights: Weights, keep: Weights, count: int, ranks: Ranks = ALONE) -> float:
    """Prune `count` weights in all, in place: those `keep` has pruned already, then the smallest |w| of the others.

    weights: this rank's pieces by name, floating, contiguous; keep: bool tensors of the same names, shapes and
    devices. Every rank passes the same names in the same order; pieces of a name follow each other in the order of
    the ranks and may be empty. Ties at the threshold go by (order of names, flat index), lowest first, so the masks
    do not depend on how the weights are cut up. Returns the largest |w| pruned now; 0.0 where nothing new is.
    Raises ValueError on all ranks where a weight on any of them is NaN or Inf, naming the parameter and the rank.
    """
    return _Selection(weights, keep, dict.fromkeys(keep, 0), ranks).run([count])


def magnitudes(weight: Tensor, keep: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """|weight| as int32 bit patterns of fp32, 0 where `keep` is False, in chunks whose memory is used again."""
    weight, keep = weight.detach().view(-1), keep.view(-1)
    size = max(1, min(CHUNK[weight.device.type], weight.numel()))
    values, factors = (
        torch.empty(size, dtype=torch.float32, device=weight.device) for _ in range(2)
    )
    for start in range(0, weight.numel(), size):
        part = slice(start, min(start + size, weight.numel()))
        out, kept = values[: part.stop - start], keep[part]
        if weight.device.type != "cpu":
            torch.mul(weight[part], kept, out=out)
        elif kept.numpy().all():
            out.copy_(weight[part])
        else:  # torch's own bool × fp32 is twice as slow (benchmarks/README.md)
            numpy.copyto(factors.numpy()[: len(out)], kept.numpy())
            torch.mul(weight[part], factors[: len(out)], out=out)
        yield part, out.abs_().view(torch.int32)


def select(
    source: Callable[[int], Iterable[Tensor]],
    wanted: list[tuple[int, int]],
    bounds: list[tuple[int, int]],
    ranks: Ranks,
) -> list[Cut]:
    """For each (group, rank), the rank-th smallest pattern, from 1, of the group's patterns on all ranks.

    bounds: of each group, the lowest and the highest pattern there is.
    """
    left = [rank for _, rank in wanted]
    lows, highs = zip(*(bounds[group] for group, _ in wanted), strict=True) if wanted else ((), ())
    found = [low >> DIGITS[0] + 8 << DIGITS[0] + 8 for low in lows]
    for shift in DIGITS:
        if all(low >> shift == high >> shift for low, high in zip(lows, highs, strict=True)):
            found = [low >> shift << shift for low in lows]  # a digit that all patterns share
            continue
        histogram = torch.zeros(len(wanted), BASE, dtype=torch.int64)
        for row, (group, _) in enumerate(wanted):
            for bits in source(group):
                same = _between(bits, found[row], min(found[row] + (BASE << shift), 1 << 31) - 1)
                histogram[row] += torch.bincount(same >> shift & BASE - 1, minlength=BASE).cpu()
        below = ranks.sum(histogram).cumsum(1)
        for row, counts in enumerate(below.tolist()):
            digit = next(i for i, count in enumerate(counts) if count >= left[row])
            left[row] -= counts[digit - 1] if digit else 0
            found[row] |= digit << shift
    return [
        Cut(bits, rank - rest) for bits, rest, (_, rank) in zip(found, left, wanted, strict=True)
    ]


@dataclass
class _Selection:
    """The thresholds of one or several groups of matrices. group: the number of each name's group."""

    weights: Weights
    keep: Weights
    group: dict[str, int]
    ranks: Ranks
    bracket: list[tuple[int, int]] = field(
        default_factory=list
    )  # of each group: lowest and highest pattern inside
    collected: dict[str, list[Tensor]] | None = (
        None  # the patterns inside, unless they are too many
    )

    def run(self, counts: list[int]) -> float:
        """Prune counts[g] weights of each group g in place; return the largest threshold."""
        groups, names = len(counts), list(self.keep)
        sizes, pruned = (
            self._by_group([count(self.keep[name]) for name in names], groups)
            for count in (Tensor.numel, _zeros)
        )
        for count, before, size in zip(counts, pruned, sizes, strict=True):
            assert before <= count <= size, f"{count} of {size} cannot be pruned where {before} are"
        self.bracket = self._guess(counts, sizes)
        cuts = self._find(counts)
        doomed = [
            count - cut.smaller - (before if cut.bits == 0 else 0)
            for count, cut, before in zip(counts, cuts, pruned, strict=True)
        ]
        ties = [self._count_ties(name, cuts[self.group[name]].bits) for name in names]
        for name, tied, quota in zip(names, ties, self._share_out(ties, doomed), strict=True):
            self._cut_off(name, cuts[self.group[name]].bits, quota, spares=tied > quota)
        new = [
            cut.bits
            for cut, count, before in zip(cuts, counts, pruned, strict=True)
            if count > before
        ]
        return float(torch.tensor(max(new, default=0), dtype=torch.int32).view(torch.float32))

    def _by_group(self, numbers: list[int], groups: int) -> list[int]:
        totals = torch.zeros(groups, dtype=torch.int64)
        totals.index_add_(0, torch.tensor([*self.group.values()]), torch.tensor(numbers))
        return self.ranks.sum(totals).tolist()

    def _guess(self, counts: list[int], sizes: list[int]) -> list[tuple[int, int]]:
        """Brackets that hold the thresholds with near certainty, four standard errors of a sample to either side."""
        samples: list[list[Tensor]] = [[] for _ in counts]
        generator = torch.Generator().manual_seed(self.ranks.index)
        for name, group in self.group.items():
            stride = max(2 * COLLECTED, sizes[group] // SAMPLE) if sizes[group] > SAMPLE else 1
            every = slice(int(torch.randint(stride, (), generator=generator)), None, stride)
            some = [
                tensor[name].view(-1)[every].contiguous() for tensor in (self.weights, self.keep)
            ]
            samples[group] += [bits.clone() for _, bits in magnitudes(*some)]
        seen = self.ranks.sum(torch.tensor([sum(map(len, sample)) for sample in samples])).tolist()
        wanted, bracket = (
            [],
            [(1, INFINITE - 1) if count else (INFINITE, INFINITE) for count in counts],
        )
        for group, (count, size, n) in enumerate(zip(counts, sizes, seen, strict=True)):
            middle, margin = count / max(1, size) * n, 2 * math.sqrt(n) + 1
            if count and n:
                wanted += [
                    (group, max(1, math.floor(middle - margin))),
                    (group, min(n, math.ceil(middle + margin))),
                ]
        together = [
            torch.cat(sample) if sample else torch.empty(0, dtype=torch.int32) for sample in samples
        ]
        anything = [(0, INFINITE - 1)] * len(counts)
        found = [
            cut.bits
            for cut in select(lambda group: [together[group]], wanted, anything, self.ranks)
        ]
        for (group, low), (_, high), bits, top in zip(
            wanted[::2], wanted[1::2], found[::2], found[1::2], strict=True
        ):
            bracket[group] = (
                max(1, bits) if low > 1 else 1,
                top if high < seen[group] else INFINITE - 1,
            )
        return bracket

    def _find(self, counts: list[int]) -> list[Cut]:
        """The exact threshold of each group: inside its bracket, or where that misses it, anywhere."""
        below, inside = self._sweep()
        held = [
            not count or (low == 1 and count <= under) or under < count <= under + within
            for count, under, within, (low, _) in zip(
                counts, below, inside, self.bracket, strict=True
            )
        ]
        if not all(held):
            self.bracket = [
                bounds if fine else (1, INFINITE - 1)
                for bounds, fine in zip(self.bracket, held, strict=True)
            ]
            below, inside = self._sweep()
        cuts = [NOTHING if not count else Cut(0, 0) for count in counts]
        wanted = [
            (group, count - below[group])
            for group, count in enumerate(counts)
            if count > below[group]
        ]
        for (group, _), cut in zip(
            wanted, select(self._inside_group, wanted, self.bracket, self.ranks), strict=True
        ):
            cuts[group] = Cut(cut.bits, below[group] + cut.smaller)
        return cuts

    def _sweep(self) -> tuple[list[int], list[int]]:
        """How many patterns of each group lie below its bracket and inside it; collects the latter if they are few."""
        under, within, self.collected, end = [], [], {}, 0
        room = max(SAMPLE, sum(mask.numel() for mask in self.keep.values()) // COLLECTED)
        store = torch.empty(room, dtype=torch.int32, device=next(iter(self.keep.values())).device)
        ranks, broken = self.ranks, len(self.keep) * self.ranks.world_size
        for i, (name, mask) in enumerate(self.keep.items()):
            low, high = self.bracket[self.group[name]]
            under.append(0)
            within.append(0)
            start = end
            for _, bits in magnitudes(self.weights[name], mask):
                if int(bits.max()) >= INFINITE:
                    broken = min(broken, i * ranks.world_size + ranks.index)
                under[-1] += _count(bits, low)
                chosen = _between(bits, low, high)
                within[-1] += len(chosen)
                if end + len(chosen) <= room:
                    store[end : end + len(chosen)] = chosen
                end += len(chosen)
            self.collected[name] = [store[start:end]]
        if end > room:
            self.collected = None
        first = ranks.min(broken)
        if first < len(self.keep) * ranks.world_size:
            name = [*self.keep][first // ranks.world_size]
            raise ValueError(
                f"{name}: holds NaN or Inf on rank {first % ranks.world_size}; its magnitudes have no order"
            )
        groups = len(self.bracket)
        return self._by_group(under, groups), self._by_group(within, groups)

    def _inside(self, name: str) -> Iterable[Tensor]:
        if self.collected is not None:
            return self.collected[name]
        low, high = self.bracket[self.group[name]]
        return (
            _between(bits, low, high) for _, bits in magnitudes(self.weights[name], self.keep[name])
        )

    def _inside_group(self, group: int) -> Iterator[Tensor]:
        for name, its in self.group.items():
            if its == group:
                yield from self._inside(name)

    def _count_ties(self, name: str, cut: int) -> int:
        """How many kept weights of this rank lie at the threshold."""
        if cut > 0:
            return sum(int((bits == cut).sum()) for bits in self._inside(name))
        if cut < 0:
            return 0
        mask = self.keep[name].view(-1)
        return sum(
            int((mask[part] & (bits == 0)).sum())
            for part, bits in magnitudes(self.weights[name], mask)
        )

    def _share_out(self, ties: list[int], doomed: list[int]) -> list[int]:
        """Of each name, how many of this rank's ties are pruned: the first `doomed[g]` of group g, in order."""
        everywhere = self.ranks.sum(torch.tensor(ties)).tolist()
        shares = []
        for total, group in zip(everywhere, self.group.values(), strict=True):
            shares.append(min(total, doomed[group]))
            doomed[group] -= shares[-1]
        split = [
            i for i, share in enumerate(shares) if 0 < share < everywhere[i]
        ]  # at most one a group
        me = self.ranks.index if self.ranks.shards > 1 else 0
        held = torch.zeros(len(split), self.ranks.shards, dtype=torch.int64)
        held[:, me] = torch.tensor([ties[i] for i in split], dtype=torch.int64)
        before = self.ranks.sum(held)[:, :me].sum(1).tolist() if split else []
        for i, earlier in zip(split, before, strict=True):
            shares[i] -= earlier
        return [max(0, min(share, mine)) for share, mine in zip(shares, ties, strict=True)]

    def _cut_off(self, name: str, cut: int, quota: int, spares: bool) -> None:
        """Write the new mask of this rank's piece: what is larger stays, and of ties those after the first `quota`."""
        mask = self.keep[name].view(-1)
        for part, bits in magnitudes(self.weights[name], mask):
            kept = mask[part]
            tied = (kept & (bits == cut)).nonzero().flatten() if spares else None
            if bits.device.type == "cpu":
                numpy.greater(bits.numpy(), cut, out=kept.numpy())
            else:
                torch.gt(bits, cut, out=kept)
            if tied is not None:
                kept[tied[quota:]] = True
                quota -= min(quota, len(tied))


def _zeros(mask: Tensor) -> int:
    """How many places are False."""
    return mask.numel() - int(
        numpy.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.sum()
    )


def _count(bits: Tensor, bound: int) -> int:
    """How many patterns are below `bound`."""
    return int(
        numpy.count_nonzero(bits.numpy() < bound)
        if bits.device.type == "cpu"
        else (bits < bound).sum()
    )


def _between(bits: Tensor, low: int, high: int) -> Tensor:
    """A copy of the patterns from `low` to `high`."""
    if bits.device.type != "cpu":
        return bits[(bits >= low) & (bits <= high)]
    values = bits.numpy()
    return torch.from_numpy(values[(values - low).view(numpy.uint32) <= high - low])

"""Order statistics of fp32 magnitudes by their bits, over ranks.

The bit pattern of a non-negative fp32 number, read as an integer, sorts as the number does; a
pruned weight counts as 0.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from lth_scale.distributed.pieces import Ranks

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 21}  # weights processed at a time
DIGITS, BASE = (24, 16, 8, 0), 256  # 31 bits, 8 at a time
INFINITE = 0x7F800000


@dataclass(frozen=True)
class Cut:
    """The bit pattern of a threshold, and how many weights of its group have a smaller one."""

    bits: int
    smaller: int


def magnitudes(weight: Tensor, keep: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """|weight| as int32 bit patterns of fp32, 0 where `keep` is False, in chunks of one buffer."""
    weight, keep = weight.detach().view(-1), keep.view(-1)
    size = max(1, min(CHUNK[weight.device.type], weight.numel()))
    values, factors = torch.empty(2, size, dtype=torch.float32, device=weight.device)
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


def order_statistics(
    source: Callable[[int], Iterable[Tensor]],
    wanted: list[tuple[int, int]],
    bounds: list[tuple[int, int]],
    ranks: Ranks,
) -> list[Cut]:
    """For each (group, k), the k-th smallest pattern, from 1, of the group's patterns on all ranks.

    A radix selection by four digits of 8 bits. source: group → this rank's patterns, int32. bounds:
    of each group, the lowest and the highest pattern in it.
    """
    remaining = [k for _, k in wanted]
    lows, highs = zip(*(bounds[group] for group, _ in wanted), strict=True) if wanted else ((), ())
    prefixes = [low >> DIGITS[0] + 8 << DIGITS[0] + 8 for low in lows]
    for shift in DIGITS:
        if all(low >> shift == high >> shift for low, high in zip(lows, highs, strict=True)):
            prefixes = [low >> shift << shift for low in lows]  # a digit that all patterns share
            continue
        histogram = torch.zeros(len(wanted), BASE, dtype=torch.int64)
        for row, (group, _) in enumerate(wanted):
            low, high = prefixes[row], min(prefixes[row] + (BASE << shift), 1 << 31) - 1
            for bits in source(group):
                same = between(bits, low, high)
                histogram[row] += torch.bincount(same >> shift & BASE - 1, minlength=BASE).cpu()
        cumulative = ranks.sum(histogram).cumsum(1)
        for row, counts in enumerate(cumulative.tolist()):
            digit = next(i for i, count in enumerate(counts) if count >= remaining[row])
            remaining[row] -= counts[digit - 1] if digit else 0
            prefixes[row] |= digit << shift
    return [
        Cut(bits, k - rest) for bits, rest, (_, k) in zip(prefixes, remaining, wanted, strict=True)
    ]


def count_below(bits: Tensor, bound: int) -> int:
    """How many patterns are below `bound`."""
    if bits.device.type == "cpu":
        return int(numpy.count_nonzero(bits.numpy() < bound))
    return int((bits < bound).sum())


def between(bits: Tensor, low: int, high: int) -> Tensor:
    """A copy of the patterns from `low` to `high`, inclusive."""
    if bits.device.type != "cpu":
        return bits[(bits >= low) & (bits <= high)]
    values = bits.numpy()
    return torch.from_numpy(values[(values - low).view(numpy.uint32) <= high - low])


def keep_above(keep: Tensor, bits: Tensor, cut: int) -> None:
    """Set the bool tensor `keep` to where the patterns are above `cut`."""
    if bits.device.type == "cpu":
        numpy.greater(bits.numpy(), cut, out=keep.numpy())
    else:
        torch.gt(bits, cut, out=keep)

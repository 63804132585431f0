"""Entities of tagged words, as seqeval finds them, and the counts that scores are made of.

Follows get_entities of seqeval 1.2.2 (metrics/sequence_labeling.py) in its default mode, which is
that of the `evaluate` metric and of transformers' run_ner: I-X begins an entity after O or after
another type.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

OUTSIDE = "O"
PREFIXED = re.compile("[BILUES](-.*)?")
# BILOU's names of what IOBES calls the last word of an entity, and an entity of one word.
IOBES = {"L": "E", "U": "S"}

Entity = tuple[str, int, int]  # type, first and last word


class Counts(NamedTuple):
    """Of one row: entities of both, of the prediction and of the labels; equal tags; words.

    Of tags without entities, the first three count the words whose tag is not O.
    """

    hits: int
    found: int
    entities: int
    correct: int
    words: int


def marks_entities(tags: Iterable[str]) -> bool:
    """Whether tags are O, and others with the prefixes of BIO, IOBES or BILOU."""
    others = {*tags} - {OUTSIDE}
    return any(tag[:1] in "BI" for tag in others) and all(map(PREFIXED.fullmatch, others))


def find_entities(tags: Sequence[str]) -> Iterator[Entity]:
    """The entities in the tags of one row, in order."""
    prefix, kind, first = OUTSIDE, "_", 0
    for i, tag in enumerate([*tags, OUTSIDE]):
        before, kind_before = prefix, kind
        prefix = IOBES.get(tag[0], tag[0])
        kind = tag[1:].split("-", 1)[-1] or "_"
        differs = kind != kind_before
        if before != OUTSIDE and (before in "ES" or prefix in "BSO" or differs):
            yield kind_before, first, i - 1
        if prefix != OUTSIDE and (prefix in "BS" or before in "ESO" or differs):
            first = i


def count_entities(predicted: Sequence[str], labels: Sequence[str]) -> Counts:
    """Counts of one row; an entity is found if its type, first and last word are."""
    theirs, ours = {*find_entities(labels)}, {*find_entities(predicted)}
    correct = sum(map(str.__eq__, predicted, labels))
    return Counts(len(ours & theirs), len(ours), len(theirs), correct, len(labels))


def count_tags(predicted: Sequence[str], labels: Sequence[str]) -> Counts:
    """Counts of one row whose tags mark no entities; see `Counts`."""
    equal = [tag for tag, label in zip(predicted, labels, strict=True) if tag == label]
    ours, theirs, hits = (len(tags) - [*tags].count(OUTSIDE) for tags in (predicted, labels, equal))
    return Counts(hits, ours, theirs, len(equal), len(labels))

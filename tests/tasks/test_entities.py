"""tasks/entities.py: entities and counts equal those of seqeval 1.2.2."""

import pytest

from lth_scale.tasks.entities import (
    Counts,
    count_entities,
    count_tags,
    find_entities,
    marks_entities,
)

# Tags, and what get_entities of seqeval 1.2.2 returns for them.
SEQEVAL = {
    "B-PER I-PER O B-LOC": [("PER", 0, 1), ("LOC", 3, 3)],  # its documentation
    "I-PER I-PER O I-LOC": [("PER", 0, 1), ("LOC", 3, 3)],  # as in CoNLL 2003 (IOB1)
    "I-PER B-PER I-PER": [("PER", 0, 0), ("PER", 1, 2)],
    "B-PER I-LOC I-LOC": [("PER", 0, 0), ("LOC", 1, 2)],
    "B-A B-A": [("A", 0, 0), ("A", 1, 1)],
    "B-A I-A E-A S-A S-A": [("A", 0, 2), ("A", 3, 3), ("A", 4, 4)],
    "E-A E-A I-A": [("A", 0, 0), ("A", 1, 1), ("A", 2, 2)],
    "B-x-y I-x-y I-x": [("x-y", 0, 1), ("x", 2, 2)],
    "B I O I B": [("_", 0, 1), ("_", 3, 3), ("_", 4, 4)],
    "O O": [],
}


@pytest.mark.parametrize("tags", SEQEVAL)
def test_entities_are_those_of_seqeval(tags):
    assert [*find_entities(tags.split())] == SEQEVAL[tags]


def test_the_tags_of_bilou_mark_the_same_entities_as_those_of_iobes():
    iobes, bilou = (
        ["S-A", "S-A", "O", "B-B", "I-B", "E-B"],
        ["U-A", "U-A", "O", "B-B", "I-B", "L-B"],
    )
    assert [*find_entities(bilou)] == [*find_entities(iobes)]
    assert [*find_entities(bilou)] == [("A", 0, 0), ("A", 1, 1), ("B", 3, 5)]


def test_counts_are_those_of_the_example_in_seqevals_documentation():
    labels = ["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"]
    predicted = ["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"]
    rows = [count_entities(p.split(), t.split()) for p, t in zip(predicted, labels, strict=True)]
    assert rows == [Counts(0, 1, 1, 5, 7), Counts(1, 1, 1, 3, 3)]
    hits, found, entities, correct, words = map(sum, zip(*rows, strict=True))
    assert 2 * hits / (found + entities) == 0.5  # its f1_score
    assert correct / words == 0.8  # its accuracy_score


def test_an_entity_of_another_type_or_length_is_not_found():
    labels = ["B-A", "I-A", "O", "B-B"]
    assert count_entities(["B-A", "O", "O", "B-A"], labels) == Counts(0, 2, 2, 2, 4)


def test_without_prefixes_words_that_are_not_o_count():
    assert count_tags(["PER", "PER", "O", "LOC"], ["PER", "O", "LOC", "LOC"]) == Counts(
        2, 3, 3, 2, 4
    )


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["O", "B-PER", "I-PER"], True),
        (["O", "I-PER"], True),
        (["B", "I", "O"], True),
        (["B-A", "L-A", "U-A", "I-A", "O"], True),
        (["O", "PER", "LOC"], False),
        (["NOUN", "VERB", "INTJ", "X"], False),
        (["B-A", "NOUN"], False),
        (["0", "1"], False),
        (["O"], False),
    ],
)
def test_tags_mark_entities_if_all_have_the_prefixes_of_a_scheme(tags, expected):
    assert marks_entities(tags) is expected

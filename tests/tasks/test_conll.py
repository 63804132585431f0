"""tasks/conll.py: words and tags of CoNLL-like text."""

import pytest

from lth_scale.tasks.conll import sentences


def read(text: str) -> list[tuple[list[str], list[str]]]:
    return [(row["tokens"], row["ner_tags"]) for row in sentences(text.split("\n"))]


def test_the_word_is_in_the_first_column_and_the_tag_in_the_last():
    text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER"
    assert read(text) == [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter"], ["B-PER"])]


def test_a_document_line_separates_sentences():
    assert len(read("a O\n-DOCSTART- -X- O O\nb O")) == 2


def test_words_between_tabs_may_contain_spaces():
    assert read("New York\tB-LOC\nis\tO\n \nbig\tO") == [
        (["New York", "is"], ["B-LOC", "O"]),
        (["big"], ["O"]),
    ]


def test_several_spaces_separate_two_columns_and_other_blanks_belong_to_the_word():
    assert read("a\u00a0b   O  \n c O") == [(["a\u00a0b", "c"], ["O", "O"])]


def test_no_lines_are_no_sentences():
    assert read("\n\n") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\n\nword", "line 3: 'word' does not have 2 columns, as the first line has; write"),
        ("word", "line 1: 'word' is a single column; write a word first and its tag last"),
        ("a O\nb c O", "line 2: 'b c O' does not have 2 columns"),
        ("a\tO\nb\t", "line 2: 'b' has no tag"),
    ],
)
def test_a_line_without_a_tag_is_refused_by_its_number(text, message):
    with pytest.raises(ValueError) as error:
        read(text)
    assert str(error.value).startswith(message)

"""Markdown and HTML show names and notes as they were written, whatever they contain."""

import random
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import markdown as python_markdown
import pytest
from markdown_it import MarkdownIt
from speed_tables import literal_in_html

from lth_scale.config import markdown
from lth_scale.config.markdown import Section, Table
from lth_scale.science import pages

TEXTS = [
    "](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "</title><script>alert(1)</script>",
    "| a | b |",
    "```",
    "# heading",
    "\n\n# Injected",
    "![x](http://h/x)",
    "[x]: http://h",
    "[^1]: x",
    "[a] (b)",
    "&lt;script&gt;",
    "&#35;",
    "- x",
    "1. x",
    "2) x",
    "> q",
    "---",
    "***",
    "+",
    "_x_ __y__ snake_case_",
    "a*b*c",
    "~~x~~",
    "$a$ $b$",
    "C #",
    "##",
    "`x",
    "``x` \\`",
    "a\\",
    "![a\\](b)",
    "<http://h>",
    "http://h/x",
    "www.h.org",
    "@user",
    "a@h.org",
    ":tada:",
    "{: .x }",
    "a{#id}",
    "a|b\\|c",
    "<!-- c",
    "    code",
    "\\< =",
    "&amp",
    "&#]",
    "x\r\ny",
    "a\u2028b",
]
OURS = [
    "0.5 ± 0.1 (n = 3)",
    "p < 0.001",
    "1.02 [0.98, 1.05] × dense",
    "f(m_IMP, θ₀′)",
    "random_mask at 70 %",
    "−0.14 ●",
    "google-bert/bert-base-uncased",
    "within_sd_full; first fails at 80 %",
    "a quick look: few examples & no finding",
    "Processor @ 2.50GHz",
    "batch 1 × 128 tokens, threads: 1",
    "3-layer + pooler",
    "10-5 = 5",
    "-0.3",
]
ALPHABET = [*"*_`[]()<>#+-.!|~&;\\$:/@{}'\"=%^ ", "a", "b1", "lt", "http", "www", "é"]
READERS = {
    "CommonMark": MarkdownIt("commonmark", {"html": True})
    .enable(["table", "strikethrough"])
    .render,
    "Python-Markdown": lambda text: python_markdown.markdown(
        text, extensions=["tables", "fenced_code", "attr_list"]
    ),
}
TAGS = "h1 blockquote p strong h2 p h3 table thead tr th th tbody tr td td p img"


class Read(HTMLParser):
    """The tags of a page (comments included), its text, and the texts of its pictures."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.text += [value for name, value in attributes if name == "alt"]

    def handle_comment(self, data):
        self.tags.append("comment")

    def handle_data(self, data):
        self.text.append(data)


def drawn(seed):
    """Random texts of characters that are active in Markdown."""
    choose = random.Random(seed)
    made = ("".join(choose.choices(ALPHABET, k=choose.randint(1, 9))) for _ in range(300))
    return [text for text in made if text.strip()]


def words(text):
    return " ".join(text.split())


PICTURE = SimpleNamespace(png=bytes(24))


def sections(text):
    table = Table(text, [text, "b"], [["a", text]])
    return text, text, [Section(text, [text], [table], {"x.png": (text, PICTURE)})]


def whole_report(text):
    """A page with everything that a report may have: an answer, folded details and sources."""
    (section,) = sections(text)[2]
    more = replace(section, reading=[text], details=section.tables, sources=[text])
    return text, text, [more], Section(text, [text])


@pytest.mark.parametrize("reader", READERS)
def test_markdown_shows_every_text_unchanged_and_adds_no_tag(reader):
    for text in [*TEXTS, *OURS, *drawn(1)]:
        found, shown = (
            Read(READERS[reader](pages.markdown(*sections(text)))),
            words(markdown.clean(text)),
        )
        assert " ".join(found.tags) == TAGS, text
        assert words(" ".join(found.text)) == words(
            " ".join([shown] * 6 + ["b a"] + [shown] * 2)
        ), text


def test_html_shows_every_text_unchanged_and_adds_no_tag():
    plain = Read(pages.html(*sections("x"))).tags
    for text in [*TEXTS, *OURS, *drawn(2)]:
        found = Read(pages.html(*sections(text)))
        assert found.tags == plain
        assert words(" ".join(found.text)).count(words(markdown.clean(text))) >= 9


def test_folded_details_sources_and_contents_show_every_text_and_add_no_tag():
    def read(text):
        given = whole_report(text)
        return Read(READERS["CommonMark"](pages.markdown(*given))), Read(pages.html(*given))

    plain = read("☃")
    for text in [*TEXTS, *OURS, *drawn(5)[:100]]:
        for page, expected in zip(read(text), plain, strict=True):
            assert page.tags == expected.tags, text
            count = words(" ".join(page.text)).count(words(markdown.clean(text)))
            assert count >= words(" ".join(expected.text)).count("☃"), text


@pytest.mark.parametrize("reader", READERS)
def test_code_shows_its_text_unchanged(reader):
    for text in [*TEXTS, *drawn(3)]:
        found = Read(READERS[reader](markdown.code(text)))
        assert found.tags == ["p", "code"] and words(" ".join(found.text)) == words(
            markdown.clean(text)
        ), text


def test_a_block_of_code_ends_where_its_text_ends():
    found = Read(READERS["CommonMark"](markdown.code_block("a\n```\n# b", "sh") + "\n\nc"))
    assert found.tags == ["pre", "code", "p"]


@pytest.mark.parametrize("reader", READERS)
def test_text_inside_an_html_element_is_shown_unchanged_by_every_renderer(reader):
    for text in [*TEXTS, *drawn(4)]:
        found = Read(READERS[reader](f"<div>{literal_in_html(text)}</div>"))
        assert found.tags == ["div"] and words("".join(found.text)) == words(
            markdown.clean(text)
        ), text


@pytest.mark.parametrize("text", OURS)
def test_text_without_active_characters_is_not_escaped(text):
    assert markdown.literal(text) == text


@pytest.mark.parametrize(
    "bad", ["\x1b", "\x07", "\x9b", "\x7f", "\b", "\u202e", "\u2066", "\u200b", "\ufeff", "\ud800"]
)
def test_pages_contain_no_control_characters(bad):
    given = sections(f"a{bad}b")
    for text in (pages.markdown(*given), pages.html(*given), markdown.code(f"a{bad}b")):
        assert bad not in text and "a�b" in text and text.encode()

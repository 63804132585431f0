"""What the evidence page shows of a speed.json of `lth_scale.speed`."""

import html
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lth_scale.config.markdown import LITERAL, Table, clean, code, literal, markdown_table
from lth_scale.config.texts import as_words
from lth_scale.shipping.speed.report import break_evens, section

PACKAGES = ("torch", "onnxruntime", "openvino")
QUARTILES = "{:.2f} [{:.2f}, {:.2f}]"


def small(lines: Iterable[str]) -> str:
    """Lines below a table or a picture that are there to be looked up, not to be read."""
    return f"<small>{'<br>'.join(lines)}</small>"


def literal_in_html(text: str) -> str:
    """`literal` inside an HTML element, where some renderers read Markdown and some do not."""

    def escape(match: re.Match[str]) -> str:
        before, last = match[0][:-1], match[0][-1]
        escaped = html.escape(last, quote=False)
        return before + (escaped if escaped != last else f"&#{ord(last)};")

    return LITERAL.sub(escape, clean(text))


def made_by(command: str, machine: str, versions: str) -> str:
    """How results were made, as a sentence."""
    return f"Made by {code(command)} on {literal(machine)} ({literal(versions)})."


def speed(check: Mapping[str, Any], picture: str) -> tuple[bytes, str]:
    """The picture of a speed check, and its tables of all engines that were timed.

    picture: where the page finds it.
    """
    parts = []
    for cell in check["cells"]:
        timed = {name: row for name, row in cell["rows"].items() if "ms" in row}
        skipped = ", ".join(name for name in cell["rows"] if name not in timed)
        part = section({**cell, "rows": timed})
        parts += [
            f"<details markdown><summary>{literal_in_html(part.title)}</summary>",
            literal(f"{' '.join(part.text)} Skipped: {skipped or 'none'}."),
            *map(markdown_table, part.tables),
            "</details>",
        ]
    figure, break_even = break_evens(check["cells"], check["machine"]["cpu"])
    parts = [
        f"![speed-up against sparsity]({picture})",
        *(f"* {literal(line)}" for line in break_even),
        markdown_table(sparse_engines(check["cells"])),
        *parts,
        small([_made_by(check)]),
    ]
    return figure.png, "\n\n".join(parts)


def sparse_engines(cells: Sequence[Mapping[str, Any]]) -> Table:
    """The sparse engines, relative to the best dense one of their precision and of any."""
    rows = []
    for cell in cells:
        network = [cell["target"], f"{100 * cell['sparsity']:.0f} %", str(cell["batch_size"])]
        for engine, row in cell["rows"].items():
            if row["sparse"] and "ms" in row:
                ratios = [QUARTILES.format(*row[key]) for key in ("times_same", "times_best")]
                rows.append([*network, engine, *ratios, row["verdict_best"]])
    header = ["network", "pruned", "batch", "engine", "× the best dense of its precision"]
    return Table("", [*header, "× the best dense of any", "verdict against any"], rows)


def times(check: Mapping[str, Any], engine: str) -> str:
    """An engine's ratios to the best dense one of its precision and of any, first target."""
    cell = check["cells"][0]
    row, best = cell["rows"][engine], cell["best"]
    ratios = [("times_same", best[row["precision"]]), ("times_best", best["any"])]
    return " and ".join(f"{QUARTILES.format(*row[key])} × {dense}" for key, dense in ratios)


def _made_by(check: Mapping[str, Any]) -> str:
    targets = dict.fromkeys(cell["target"] for cell in check["cells"])
    settings = check["settings"].items()
    given = {name: words for name, words in settings if words not in (None, "auto", 0)}
    flags = [word for name, words in given.items() for word in as_words(name, words)]
    machine, known = check["machine"], check["machine"]["versions"]
    return made_by(
        shlex.join(["python", "-m", "lth_scale.speed", *targets, *flags]),
        f"{machine['cpu']}, {machine['gpu'] or 'no GPU'}",
        ", ".join(f"{name} {known[name]}" for name in PACKAGES if name in known),
    )

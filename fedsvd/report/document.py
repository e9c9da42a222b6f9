"""A report as a document: paragraphs, tables and figures, written as one HTML page or as Markdown."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from fedsvd.runs.folder import write_text


@dataclass(frozen=True)
class Paragraph:
    """Plain text; ``kind`` is empty, ``note`` or ``warning``."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table of plain texts; columns whose cells are all numbers are set to the right.

    Attributes:
        headings: One a column.
        rows: Cells, as many as headings.
        caption: What it shows.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @property
    def right(self) -> list[bool]:
        """Which columns hold numbers: one a cell, not a list of them."""
        return [
            index > 0 and all(row[index][:1] in "0123456789-+−–≤≥∞" and ", " not in row[index] for row in self.rows)
            for index in range(len(self.headings))
        ]


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        source: An image as a data URI.
        caption: What it shows.
        described: What a reader who cannot see it should know.
    """

    source: str
    caption: str
    described: str


Block = Paragraph | Bullets | Grid | Drawing


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


def drawing(figure: Figure, caption: str, described: str) -> Drawing:
    """Turn a figure into vector graphics that a page can carry within itself."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return Drawing("data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode(), caption, described)


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Write one page that needs no other file and nothing from the network."""
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    # Names and reasons come from clients and command lines: everything is escaped.
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    kinds = {type(block): type(block).__name__ for section in sections for block in section.blocks}
    return page.from_string(template).render(title=title, sections=sections, kind_of=lambda block: kinds[type(block)])


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Write the words and numbers; a figure is told by its description."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts += [f"## {_plain(section.title)}", *(block_to_markdown(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def block_to_markdown(block: Block) -> str:
    """Write one block."""
    match block:
        case Paragraph(text, kind):
            return f"> {_plain(text)}" if kind else _plain(text)
        case Bullets(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Drawing(_, caption, described):
            return f"*{_plain(caption)} {_plain(described)}*"
        case Grid(headings, rows, caption):
            lines = [_row(headings), _row(["--:" if right else ":--" for right in block.right]), *map(_row, rows)]
            return "\n".join([_plain(caption), ""] * bool(caption) + lines)


def write_report(title: str, sections: Sequence[Section], folder: Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md``, each whole or not at all, and return their paths."""
    page, words = folder / "report.html", folder / "report.md"
    write_text(page, to_html(title, sections))
    write_text(words, to_markdown(title, sections))
    return page, words


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """Keep text from being taken for markup, and on one line."""
    for mark in ("\\", "<", "*", "`", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())

"""Document model of a report: paragraphs, lists, tables and figures, rendered as one HTML page or as Markdown."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from fedsvd.report.figures import save_figure
from fedsvd.report.literal import markdown_text
from fedsvd.report.templates import environment
from fedsvd.runs.folder import write_text


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text; ``kind`` is empty, ``note`` or ``warning``."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Bullets:
    """A bulleted list of plain texts."""

    items: Sequence[str]


@dataclass(frozen=True)
class TableBlock:
    """A table of plain texts; numeric columns are right-aligned.

    Attributes:
        headings: One heading per column.
        rows: Rows of cells, as many cells per row as headings.
        caption: Caption above the table.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @property
    def right_aligned(self) -> list[bool]:
        """For each column, whether all its cells are single numbers (the first column never counts)."""
        return [
            index > 0 and all(row[index][:1] in "0123456789-+−–≤≥∞" and ", " not in row[index] for row in self.rows)
            for index in range(len(self.headings))
        ]


@dataclass(frozen=True)
class FigureBlock:
    """A figure.

    Attributes:
        source: The image as a data URI.
        caption: Caption below the figure.
        alt_text: Text alternative for readers who cannot see the image.
    """

    source: str
    caption: str
    alt_text: str


Block = Paragraph | Bullets | TableBlock | FigureBlock


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: Sequence[Block]


def figure_block(figure: Figure, caption: str, alt_text: str) -> FigureBlock:
    """Convert a figure to SVG and embed it as a data URI."""
    stream = io.BytesIO()
    save_figure(figure, stream, format="svg", metadata={"Date": None, "Creator": None})
    return FigureBlock("data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode(), caption, alt_text)


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Render one self-contained page that loads no other file and nothing from the network."""
    return _render("page.html", title=title, sections=sections)


def to_notebook_html(sections: Sequence[Section], num_open: int) -> str:
    """Render sections for the output of a notebook's cell; all but the first ``num_open`` are folded."""
    return _render("notebook.html", sections=sections, num_open=num_open)


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Render text and tables as Markdown; a figure is replaced by its caption and text alternative."""
    parts = [f"# {markdown_text(title)}"]
    for section in sections:
        parts += [f"## {markdown_text(section.title)}", *(block_to_markdown(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def block_to_markdown(block: Block) -> str:
    """Render one block as Markdown."""
    match block:
        case Paragraph(text, kind):
            return f"> {markdown_text(text)}" if kind else markdown_text(text)
        case Bullets(items):
            return "\n".join(f"- {markdown_text(item)}" for item in items)
        case FigureBlock(_, caption, alt_text):
            return f"*{markdown_text(caption)} {markdown_text(alt_text)}*"
        case TableBlock(headings, rows, caption):
            alignment = ["--:" if right else ":--" for right in block.right_aligned]
            lines = [_row(headings), f"| {' | '.join(alignment)} |", *map(_row, rows)]
            return "\n".join([markdown_text(caption), ""] * bool(caption) + lines)


def write_report(title: str, sections: Sequence[Section], folder: Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md``, each atomically, and return their paths."""
    html, markdown = folder / "report.html", folder / "report.md"
    write_text(html, to_html(title, sections))
    write_text(markdown, to_markdown(title, sections))
    return html, markdown


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_text, cells)) + " |"


def _render(template: str, **values: object) -> str:
    return environment().get_template(template).render(**values, kind_of=kind_of)


def kind_of(block: Block) -> str:
    """Return the name of a block's type, by which templates render it."""
    return type(block).__name__

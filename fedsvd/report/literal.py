"""Text of users, clients and files, shown as it is: never as markup, as a formula, or as a terminal command.

Class names, paths, errors and a user's texts may contain any character. Rich reads square brackets as styles, Markdown
has many marks, matplotlib reads dollar signs as formulas (see `fedsvd.report.figures`), and a terminal obeys control
characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

# Categories of characters without a glyph: control, format (such as bidirectional overrides), surrogate, and the line
# and paragraph separators.
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Joiners that scripts and emoji need; they change the shape of their neighbors only.
_JOINERS = "\u200c\u200d"


# Marks that have a meaning anywhere in Markdown, including GitHub's formulas and strikethrough; an underscore has none
# inside a word; the last group has one only at the start of a block.
_MARKS = re.compile(r"[\\`*<\[\]$~&|]|(?<![^\W_])_|_(?![^\W_])")
_BLOCK_START = re.compile(r"^(\d*)(?=(?:#{1,6}|[-+]|(?<=\d)[.)])(?:\s|$)|>|--|=)")


def visible(text: object, keep: str = "") -> str:
    r"""Return text with each control character replaced by its escape sequence, as in ``\x1b``.

    Args:
        text: The text, or an object that is shown as text.
        keep: Control characters to leave as they are, such as line breaks.
    """
    string = str(text)
    if string.isprintable():
        return string
    return "".join(
        _escape(character) if _is_invisible(character) and character not in keep else character for character in string
    )


def one_line(text: object) -> str:
    """Return `visible` text with each run of spaces and line breaks replaced by one space."""
    return visible(" ".join(str(text).split()))


def literal(text: object, style: str = "", keep: str = "") -> Text:
    """Return `visible` text for rich, which does not read markup in it."""
    return Text(visible(text, keep), style=style)


def markdown_text(text: object) -> str:
    """Return text on one line that Markdown shows as it is, in a paragraph, a list item or a table's cell."""
    escaped = _MARKS.sub(lambda mark: f"\\{mark[0]}", one_line(text))
    return _BLOCK_START.sub(r"\1\\", escaped)


def code_span(text: object) -> str:
    """Return text as a Markdown code span, delimited by more backticks than it has in a row."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def add_literal_row(table: Table, cells: Iterable[object]) -> None:
    """Add a row whose cells are not read as markup."""
    table.add_row(*map(literal, cells))


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE and character not in _JOINERS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

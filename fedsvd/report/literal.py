"""Text of users, clients and files, shown as it is: never as markup, as a formula, or as a terminal command.

Class names, paths, errors and a user's texts may contain any character. Rich reads square brackets as styles,
matplotlib reads dollar signs as formulas, and a terminal obeys control characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

# Categories of characters without a glyph: control, format (such as bidirectional overrides), surrogate, and the line
# and paragraph separators.
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Joiners that scripts and emoji need; they change the shape of their neighbors only.
_JOINERS = "\u200c\u200d"


def visible(text: object) -> str:
    r"""Return text on one line, with each control character replaced by its escape sequence, as in ``\x1b``."""
    string = str(text)
    if string.isprintable():
        return string
    return "".join(_escape(character) if _is_invisible(character) else character for character in string)


def literal(text: object, style: str = "") -> Text:
    """Return `visible` text for rich, which does not read markup in it."""
    return Text(visible(text), style=style)


def add_literal_row(table: Table, cells: Iterable[object], style: str = "") -> None:
    """Add a row whose cells are not read as markup."""
    table.add_row(*map(literal, cells), style=style)


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE and character not in _JOINERS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

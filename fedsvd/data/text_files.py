"""Reading of unlabeled texts from files."""

from __future__ import annotations

import json
from pathlib import Path

from fedsvd.errors import DataError


def read_texts(path: Path) -> tuple[list[str], list[str] | None]:
    """Read texts from a file.

    Args:
        path: A text file with one text per line, or a ``.jsonl`` file with one object per line that has ``text`` and,
            optionally, ``text_pair``. Blank lines are skipped.

    Returns:
        The texts, and the second texts (None if there are none).

    Raises:
        DataError: The file is unreadable or empty, a line has no text, or only some lines have a ``text_pair``.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) if path.suffix == ".jsonl" else {"text": line} for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"--file {path} cannot be read as text: {error}.") from error
    if not rows:
        raise DataError(f"--file {path} contains no text.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(f"line {number} of {path} has no string under the key 'text'.")
    pairs = [row["text_pair"] for row in rows if isinstance(row.get("text_pair"), str)]
    if pairs and len(pairs) != len(rows):
        raise DataError(
            f"{len(pairs)} of the {len(rows)} lines of {path} have a text_pair; either all lines or none must have one."
        )
    return [row["text"] for row in rows], pairs or None

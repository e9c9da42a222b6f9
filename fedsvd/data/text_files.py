"""Texts without labels, out of a file."""

from __future__ import annotations

import json
from pathlib import Path

from fedsvd.errors import DataError


def read_texts(path: Path) -> tuple[list[str], list[str] | None]:
    """Read texts: one a line, or of a ``.jsonl`` file an object a line with ``text`` and perhaps ``text_pair``.

    Returns:
        The texts, and the second texts where all have one (None where none has).

    Raises:
        DataError: A file that cannot be read or holds no texts, or a line without a text.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) if path.suffix == ".jsonl" else {"text": line} for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"--file {path} cannot be read as text: {error}.") from error
    if not rows:
        raise DataError(f"--file {path} holds no text.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(f"line {number} of {path} has no text under the key text.")
    pairs = [row["text_pair"] for row in rows if isinstance(row.get("text_pair"), str)]
    if pairs and len(pairs) != len(rows):
        raise DataError(f"{len(pairs)} of the {len(rows)} lines of {path} have a text_pair: all or none must.")
    return [row["text"] for row in rows], pairs or None

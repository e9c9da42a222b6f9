"""Conversations shipped in a Python package: the Chit-Chat Challenge of Brigham Young University."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from fedsvd.assets import CHITCHAT, build_once, cache_folder, fetch
from fedsvd.data.conversations import ASSISTANT, USER, Turn

_FILE = "conversations.jsonl"


def chitchat_file() -> Path:
    """Return a file of conversations in the chat format (``messages``), one per line, in the order of the package.

    These are the 4,017 of its 7,168 conversations in which two people write. Who writes first is the user.

    Raises:
        AssetError: The package is unavailable.
    """
    return build_once(cache_folder() / f"chitchat-{CHITCHAT.version}", _write_file) / _FILE


def _write_file(folder: Path) -> None:
    with zipfile.ZipFile(fetch(CHITCHAT)) as wheel, wheel.open("chitchat_dataset/dataset.json") as stream:
        conversations = json.load(stream).values()
    rows = (
        to_turns(message for group in conversation["messages"] for message in group) for conversation in conversations
    )
    lines = (json.dumps({"messages": turns}, ensure_ascii=False) + "\n" for turns in rows if turns)
    (folder / _FILE).write_text("".join(lines), encoding="utf-8")


def to_turns(messages: Iterable[Mapping[str, Any]]) -> list[Turn]:
    """Return the turns of two people; messages that one of them writes in a row are the lines of one turn.

    Args:
        messages: Each with a ``sender`` and a ``text``, in the order in which they were sent.

    Returns:
        The turns; none if one person or more than two people write.
    """
    filled = [message for message in messages if message["text"].strip()]
    senders = list(dict.fromkeys(message["sender"] for message in filled))
    if len(senders) != 2:
        return []
    roles = dict(zip(senders, (USER, ASSISTANT), strict=True))
    return [
        {"role": roles[sender], "content": "\n".join(message["text"].strip() for message in written)}
        for sender, written in groupby(filled, key=lambda message: message["sender"])
    ]

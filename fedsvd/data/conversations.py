"""Conversations in the chat format: a cell that holds a list of turns, each with a role and a content.

A data set stores a conversation as JSON text, with the roles and contents alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from fedsvd.data.table import Table
from fedsvd.errors import DataError

Turn = dict[str, str]
# Whether a model can learn from a conversation; raises `DataError` if its chat template cannot render it.
CanLearn = Callable[[Sequence[Turn]], bool]

ASSISTANT, USER = "assistant", "user"
_ROLES = ("system", USER, ASSISTANT)
NO_MESSAGES, NO_ASSISTANT = "no messages", "no assistant turn"
TOO_LONG = "no token of an assistant turn within model.max_length"
# Keys of a turn that other programs train on or that change what they train on.
_UNSUPPORTED = (
    "tool_calls", "tool_call_id", "function_call", "tools", "weight", "train", "thinking", "reasoning_content",
)  # fmt: skip
_SURROGATE = re.compile("[\ud800-\udfff]")


def to_conversation(value: object) -> str:
    """Return a cell's conversation as JSON text: a list of turns, each an object with ``role`` and ``content``.

    The cell holds the list itself, or its JSON text, as in a CSV file. Other keys of a turn, such as a name or a time,
    are ignored.

    Raises:
        DataError: The cell holds no list of turns, or a turn has no known role, no text as content, or a key that would
            change what is learned. The message continues "column … ".
    """
    turns = _parse(value) if isinstance(value, str) else value
    if not isinstance(turns, (list, tuple)):
        kind = "an object" if isinstance(turns, dict) else f"a value of type {type(turns).__name__}"
        raise DataError(f'holds {kind}: expected a list of turns, as in [{{"role": "user", "content": "…"}}, …]')
    return dump_conversation([_check_turn(turn, number) for number, turn in enumerate(turns, start=1)])


def dump_conversation(turns: Sequence[Turn]) -> str:
    """Return a conversation as a data set stores it."""
    return json.dumps(list(turns), ensure_ascii=False)


def load_conversation(text: str) -> list[Turn]:
    """Return the turns of a stored conversation."""
    turns: list[Turn] = json.loads(text)
    return turns


def unanswered(turns: Sequence[Turn]) -> list[Turn]:
    """Return what a model answers: all turns, or those before the last one if it is the assistant's."""
    return list(turns[:-1] if turns and turns[-1]["role"] == ASSISTANT else turns)


def learnable_conversations(
    table: Table, conversations: Sequence[str | None], can_learn: CanLearn | None
) -> list[tuple[str, list[str | None]]]:
    """Return, by the reason to leave out a row, the conversations that have what the reason names; None for the others.

    Args:
        table: The table, for messages.
        conversations: Its stored conversations; None for empty cells.
        can_learn: Whether a model can learn from a conversation with assistant turns; None: from any.

    Raises:
        DataError: The chat template cannot render a conversation.
    """
    filled = [None if text == "[]" else text for text in conversations]
    turns = [[] if text is None else load_conversation(text) for text in filled]
    answered = [
        text if any(turn["role"] == ASSISTANT for turn in row) else None
        for text, row in zip(filled, turns, strict=True)
    ]
    learnable = list(answered)
    for index, number in enumerate(table.row_numbers if can_learn is not None else ()):
        try:
            if can_learn is not None and answered[index] is not None and not can_learn(turns[index]):
                learnable[index] = None
        except DataError as error:
            raise DataError(f"{table.source}: row {number}: {error}") from error
    return [(NO_MESSAGES, filled), (NO_ASSISTANT, answered), (TOO_LONG, learnable)]


def _parse(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(
            f"holds text that is not JSON ({reason}): write the list of turns as JSON, with double quotation marks, as "
            "json.dumps does"
        ) from error


def _check_turn(turn: Any, number: int) -> Turn:
    if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
        hint = ""
        if isinstance(turn, dict) and {"from", "value"} <= set(turn):
            hint = "; rename from to role and value to content, with the roles user and assistant for human and gpt"
        raise DataError(f"holds a turn {number} without the keys role and content: expected both{hint}")
    role, content = turn["role"], turn["content"]
    if role not in _ROLES:
        raise DataError(
            f"holds the role {role!r} in turn {number}: expected {', '.join(_ROLES)}. Rename it, or leave the turn out"
        )
    if not isinstance(content, str):
        kind = "no content" if content is None else f"a content of type {type(content).__name__}"
        raise DataError(f"holds {kind} in turn {number}: expected a text (images and tool calls are not supported)")
    if _SURROGATE.search(content):
        raise DataError(f"holds half of a surrogate pair (\\ud800 to \\udfff) in turn {number}: remove it")
    found = [key for key in _UNSUPPORTED if turn.get(key) is not None]
    if found:
        raise DataError(f"holds the key {found[0]!r} in turn {number}, which is not supported: remove it from the file")
    return {"role": role, "content": content}

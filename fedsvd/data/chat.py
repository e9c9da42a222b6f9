"""Conversations as token sequences: the tokenizer's chat template, with labels on the assistant turns alone.

A conversation is rendered and tokenized once, as a whole. Which tokens belong to assistant turns is known from the
template if it marks them (``{% generation %}``). Otherwise the conversation is also rendered up to each assistant turn,
with the prompt for its answer, and up to the turn's end; each of these renderings must be the beginning of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fedsvd.data.conversations import ASSISTANT, USER, CanLearn, Turn
from fedsvd.data.instructions import IGNORED
from fedsvd.errors import DataError

# As transformers looks for it.
_MARKS_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_conversation(
    turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a conversation's first ``max_length`` tokens.

    Labels are the ids of the tokens of assistant turns, up to the end-of-turn token, and -100 elsewhere.

    Raises:
        DataError: The template cannot render the conversation, or renders its beginning differently if turns follow.
    """
    if _MARKS_GENERATION.search(tokenizer.get_chat_template()):
        encoded = _apply(tokenizer, turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, is_learned = list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]
    else:
        ids, is_learned = _encode_by_prefixes(turns, tokenizer, max_length)
    labels = [token if learned else IGNORED for token, learned in zip(ids, is_learned, strict=True)]
    return ids[:max_length], labels[:max_length]


def conversation_check(tokenizer: PreTrainedTokenizerBase, max_length: int) -> CanLearn:
    """Return a function that tells whether a conversation has a token to learn among its first ``max_length``.

    Raises:
        DataError: The tokenizer has no chat template, or is a slow one.
    """
    try:
        tokenizer.get_chat_template()
    except ValueError as error:
        # It has none, or several and no default.
        number = "several chat templates and no default" if tokenizer.chat_template else "no chat template"
        raise DataError(
            f"data.messages_column is not possible with this model, whose tokenizer has {number}: choose a chat model, "
            "or save the tokenizer with one chat_template."
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            "data.messages_column is not possible with this model, whose tokenizer does not know the position of each "
            "token in the text: convert it to a fast tokenizer."
        )

    def can_learn(turns: Sequence[Turn]) -> bool:
        _, labels = encode_conversation(turns, tokenizer, max_length)
        # The first token of a sequence is not predicted.
        return any(label != IGNORED for label in labels[1:])

    return can_learn


def render_prompt(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text after which a model answers a conversation, which ends with a turn of the user.

    Raises:
        DataError: The template cannot render it, or there is no turn.
    """
    return _render(tokenizer, turns, add_generation_prompt=True)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token with which the template ends an assistant turn; None if there is none."""
    _, labels = encode_conversation(
        [{"role": USER, "content": "a"}, {"role": ASSISTANT, "content": "b"}], tokenizer, 10**6
    )
    last = next((label for label in reversed(labels) if label != IGNORED), None)
    return last if last in _special_tokens(tokenizer) else None


def _encode_by_prefixes(
    turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[int], list[bool]]:
    text = _render(tokenizer, turns)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"])[:max_length], list(encoded["offset_mapping"])[:max_length]
    special = _special_tokens(tokenizer)
    is_learned, end = [False] * len(ids), offsets[-1][1] if offsets else 0
    for start, stop in _assistant_spans(turns, tokenizer, text):
        if start >= end:
            # This turn is beyond the last token, and so are all others: rendering them would take most of the time.
            break
        inside = [index for index, (first, last) in enumerate(offsets) if first < stop and last > max(start, first)]
        ends = [index for index in inside if ids[index] in special]
        if ends and not text[offsets[ends[-1]][1] : stop].strip():
            # White space between turns follows the end-of-turn token; the answer ends before it.
            inside = [index for index in inside if index <= ends[-1]]
        for index in inside:
            is_learned[index] = True
    return ids, is_learned


def _assistant_spans(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each assistant turn in the rendered conversation, in characters."""
    for number, turn in enumerate(turns):
        if turn["role"] != ASSISTANT:
            continue
        before = _render(tokenizer, turns[:number], add_generation_prompt=True)
        through = _render(tokenizer, turns[: number + 1])
        if not (through.startswith(before) and text.startswith(through)):
            raise DataError(
                f"the chat template renders turn {number + 1} differently if it is being asked for or "
                "if other turns follow, so that its tokens are not known. Mark the assistant turns in the template of "
                "the tokenizer with {% generation %} and {% endgeneration %}, or choose another model."
            )
        yield len(before), len(through)


def _render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
    if not turns:
        raise DataError("the conversation starts with an assistant turn: put a system or user turn before it.")
    return str(_apply(tokenizer, turns, tokenize=False, add_generation_prompt=add_generation_prompt))


def _apply(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(turns), **options)
    except TemplateError as error:
        raise DataError(f"the tokenizer's chat template cannot render the conversation: {error}.") from error


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}

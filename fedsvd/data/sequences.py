"""Rows of a language model's data as token sequences and as prompts: answers to prompts, conversations, plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fedsvd.config import DataConfig, ModelConfig
from fedsvd.data.chat import encode_conversation, end_of_turn, render_prompt
from fedsvd.data.conversations import ASSISTANT, Turn, load_conversation, unanswered
from fedsvd.data.instructions import (
    IGNORED,
    build_instructions,
    end_token,
    prompt_ids,
    tokenize_instructions,
    tokenize_prompt,
)
from fedsvd.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """What a language model continues.

    Attributes:
        ids: The token ids.
        text: The text of the prompt, not truncated.
        answer: The answer in the data; empty if it is not known.
    """

    ids: list[int]
    text: str
    answer: str


def tokenize_rows(
    dataset: Dataset, config: DataConfig, model: ModelConfig, tokenizer: PreTrainedTokenizerBase
) -> Dataset:
    """Tokenize rows into sequences of at most ``model.max_length`` tokens, with the labels that are learned.

    Returns:
        A dataset with columns ``input_ids`` and ``labels``; labels are -100 where nothing is learned.

    Raises:
        DataError: A chat template is missing or cannot be used, or a conversation has no token to learn.
    """
    if config.row_format == "messages":
        return _tokenize_conversations(
            [load_conversation(text) for text in dataset["messages"][:]], tokenizer, model.max_length
        )
    if config.row_format == "plain_text":
        return _tokenize_texts(dataset["text"][:], tokenizer, model.max_length)
    rows = build_instructions(dataset, config, tokenizer, model.chat_template)
    return tokenize_instructions(rows, tokenizer, model.max_length, model.chat_template)


def build_prompts(
    dataset: Dataset,
    config: DataConfig,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    with_answers: bool = False,
) -> list[Prompt]:
    """Return the prompts of rows, of at most ``max_length`` tokens.

    A conversation is truncated at its start. If it ends with an assistant turn, the prompt is what precedes this turn.

    Args:
        dataset: The rows.
        config: Settings that define the prompts.
        model: Whether to use the chat template.
        tokenizer: The model's tokenizer.
        max_length: Maximum number of tokens.
        with_answers: Choose prompts whose answers are known: a conversation up to its last assistant turn, and the
            first half of a plain text.

    Raises:
        DataError: A chat template is missing, cannot be used, or cannot render a conversation.
    """
    if config.row_format == "messages":
        return [
            _conversation_prompt(load_conversation(text), number, tokenizer, max_length, with_answers)
            for number, text in enumerate(dataset["messages"][:], start=1)
        ]
    if config.row_format == "plain_text":
        halves = [_halve(text) if with_answers else (text, "") for text in dataset["text"][:]]
        return [Prompt(tokenize_prompt(text, tokenizer)[-max_length:], text, rest) for text, rest in halves]
    rows = build_instructions(dataset, config, tokenizer, model.chat_template)
    return [
        Prompt(prompt_ids(row, tokenizer, max_length, model.chat_template), row.prompt, row.answer.strip())
        for row in rows
    ]


def check_conversations(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> None:
    """Check that the chat template renders each conversation of a dataset, up to the turn that is asked for.

    Args:
        dataset: The conversations.
        tokenizer: The model's tokenizer.
        names: What the conversations are called in messages, such as the rows of a file.

    Raises:
        DataError: The template cannot render a conversation, or a conversation has no turn to answer.
    """
    for name, text in zip(names, dataset["messages"][:], strict=True):
        try:
            render_prompt(unanswered(load_conversation(text)), tokenizer)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error


def stop_tokens(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer besides the end token: that which ends an assistant turn."""
    if config.row_format != "messages":
        return []
    token = end_of_turn(tokenizer)
    return [] if token is None else [token]


def _tokenize_conversations(
    conversations: Sequence[Sequence[Turn]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for turns in conversations:
        ids, labels = encode_conversation(turns, tokenizer, max_length)
        if all(label == IGNORED for label in labels[1:]):
            raise DataError(f"a conversation has no token to learn within model.max_length = {max_length} tokens.")
        columns["input_ids"].append(ids)
        columns["labels"].append(labels)
    return Dataset.from_dict(columns)


def _tokenize_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Tokenize texts with the tokenizer's tokens at the start and an end token; a longer text loses its end."""
    end = end_token(tokenizer)
    sequences = [[*tokenize_prompt(text, tokenizer), end][:max_length] for text in texts]
    return Dataset.from_dict({"input_ids": sequences, "labels": sequences})


def _conversation_prompt(
    turns: Sequence[Turn], number: int, tokenizer: PreTrainedTokenizerBase, max_length: int, with_answer: bool
) -> Prompt:
    count = len(turns)
    if with_answer:
        count = max((number for number, turn in enumerate(turns, start=1) if turn["role"] == ASSISTANT), default=count)
    answer = turns[count - 1]["content"] if turns and turns[count - 1]["role"] == ASSISTANT else ""
    try:
        text = render_prompt(unanswered(turns[:count]), tokenizer)
    except DataError as error:
        raise DataError(f"conversation {number}: {error}") from error
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Prompt(ids[-max_length:], text, answer.strip())


def _halve(text: str) -> tuple[str, str]:
    """Split a text in the middle, between two words if it has several."""
    middle = text.find(" ", len(text) // 2)
    return (text[:middle], text[middle:].strip()) if middle > 0 else (text, "")

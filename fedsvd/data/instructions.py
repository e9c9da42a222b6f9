"""Prompts and answers for causal language models, tokenized as one sequence per example or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fedsvd.config import DataConfig
from fedsvd.errors import DataError, ModelError

# The label of positions that do not enter the loss.
IGNORED = -100


@dataclass(frozen=True)
class Instruction:
    """One example as a prompt and an answer.

    Attributes:
        before: The part of the prompt before the text.
        text: The example's text; truncated if the sequence is too long.
        after: The part of the prompt after the text.
        answer: The target text.
    """

    before: str
    text: str
    after: str
    answer: str

    @property
    def prompt(self) -> str:
        """The whole prompt."""
        return self.before + self.text + self.after


def build_instructions(
    dataset: Dataset, config: DataConfig, tokenizer: PreTrainedTokenizerBase, chat_template: bool
) -> list[Instruction]:
    """Format rows with ``data.prompt_template``; the answer is the row's ``response`` or, without one, its class name.

    Args:
        dataset: Dataset with columns ``text``, ``label`` and, optionally, ``text_pair`` and ``response``.
        config: The ``data`` configuration group.
        tokenizer: The model's tokenizer, which provides the chat template.
        chat_template: Whether to wrap each prompt in the chat template.

    Raises:
        DataError: ``chat_template`` is set, but the tokenizer has no chat template.
    """
    names = dataset.features["label"].names
    answers = dataset["response"][:] if "response" in dataset.column_names else [names[i] for i in dataset["label"][:]]
    pairs = dataset["text_pair"][:] if "text_pair" in dataset.column_names else [""] * len(dataset)
    before, after = config.prompt_parts
    chat_prefix, chat_suffix = _chat_affixes(tokenizer) if chat_template else ("", "")
    # Language-model tokenizers encode a word together with the space before it.
    space = "" if chat_template or config.prompt_template[-1:].isspace() else " "
    rows = []
    for text, pair, answer in zip(dataset["text"][:], pairs, answers, strict=True):
        values = {"text_pair": pair, "choices": ", ".join(names)}
        start, end = chat_prefix + before.format_map(values), after.format_map(values) + chat_suffix
        rows.append(Instruction(start, text, end, space + answer.strip()))
    return rows


def tokenize_instructions(
    rows: Sequence[Instruction], tokenizer: PreTrainedTokenizerBase, max_length: int, chat_template: bool
) -> Dataset:
    """Tokenize instructions into sequences of at most ``max_length`` tokens: prompt, answer, end token.

    If a sequence is too long, the end of its text is truncated first, then the end of its answer.

    Returns:
        A dataset with columns ``input_ids`` and ``labels``. Labels are -100 for prompt tokens, and the token ids for
        the answer and the end token.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    end = end_token(tokenizer)
    for row in rows:
        answer = [*tokenizer(row.answer, add_special_tokens=False)["input_ids"], end]
        prompt = tokenize_prompt(row.prompt, tokenizer, special=not chat_template)
        excess = len(prompt) + len(answer) - max_length
        if excess > 0:
            shortened = _drop_last_tokens(row.text, excess, tokenizer)
            prompt = tokenize_prompt(row.before + shortened + row.after, tokenizer, special=not chat_template)
            answer = answer[: max(1, max_length // 2, max_length - len(prompt))]
            prompt = prompt[max(0, len(prompt) + len(answer) - max_length) :]
        columns["input_ids"].append(prompt + answer)
        columns["labels"].append([IGNORED] * len(prompt) + answer)
    return Dataset.from_dict(columns)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a sequence.

    Raises:
        ModelError: The tokenizer has none.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise ModelError(
            "the model's tokenizer has no end token, with which a language model ends its answers: set its eos_token "
            "and save it again."
        )
    return int(end)


def tokenize_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase, *, special: bool = True) -> list[int]:
    """Tokenize a prompt with the tokenizer's special tokens at the start, if ``special``, but none at the end.

    A prompt without any token becomes the end token, after which a model can continue.
    """
    ids: list[int] = list(tokenizer(prompt, add_special_tokens=special)["input_ids"])
    end_tokens = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    if special and len(ids) > 1 and ids[-1] in end_tokens:
        # An end token may also be written in the prompt.
        written = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        ids = ids[:-1] if ids[-len(written) - 1 : -1] == written else ids
    return ids or [end_token(tokenizer)]


def prompt_ids(
    row: Instruction, tokenizer: PreTrainedTokenizerBase, max_length: int, chat_template: bool = False
) -> list[int]:
    """Return a prompt's token ids, with its text truncated so that there are at most ``max_length``."""
    ids = tokenize_prompt(row.prompt, tokenizer, special=not chat_template)
    if len(ids) <= max_length:
        return ids
    shortened = _drop_last_tokens(row.text, len(ids) - max_length, tokenizer)
    return tokenize_prompt(row.before + shortened + row.after, tokenizer, special=not chat_template)[-max_length:]


def pack_sequences(dataset: Dataset, max_length: int) -> Dataset:
    """Concatenate consecutive sequences into packed sequences of at most ``max_length`` tokens.

    Returns:
        A dataset with columns ``input_ids``, ``labels`` and ``position_ids``. Positions restart at 0 with each
        sequence, so that transformers masks attention to the preceding ones. The first token of each sequence is
        excluded from the loss, so that it is not predicted from the preceding sequence.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for ids, labels in zip(dataset["input_ids"][:], dataset["labels"][:], strict=True):
        if not columns["input_ids"] or len(columns["input_ids"][-1]) + len(ids) > max_length:
            for column in columns.values():
                column.append([])
        columns["input_ids"][-1] += ids
        columns["labels"][-1] += [IGNORED, *labels[1:]]
        columns["position_ids"][-1] += range(len(ids))
    return Dataset.from_dict(columns)


def _chat_affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what the chat template inserts before and after a prompt."""
    if not tokenizer.chat_template:
        raise DataError(
            "model.chat_template = true is invalid: the model's tokenizer has no chat template; set it to false, or "
            "choose a chat model."
        )
    marker = "\x00prompt\x00"
    chat: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
    )
    prefix, _, suffix = str(chat).partition(marker)
    return prefix, suffix


def _drop_last_tokens(text: str, num_tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text without its last ``num_tokens`` tokens."""
    if not tokenizer.is_fast:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return str(tokenizer.decode(ids[: max(0, len(ids) - num_tokens)]))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    num_left = len(offsets) - num_tokens
    return text[: offsets[num_left - 1][1]] if num_left > 0 else ""

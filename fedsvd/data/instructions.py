"""From rows to prompts and answers of a causal language model, one sequence an example or several in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fedsvd.config import DataConfig
from fedsvd.errors import DataError

IGNORED = -100


@dataclass(frozen=True)
class Instruction:
    """One example as text.

    Attributes:
        before: The prompt up to the text that may be cut where it is too long.
        text: That text.
        after: The prompt's rest.
        answer: What is to be learnt.
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
    """Put rows into ``data.prompt_template``; the answer is the row's ``response``, or else the name of its class.

    Args:
        dataset: With ``text``, ``label``, and perhaps ``text_pair`` and ``response``.
        config: The group ``data``.
        tokenizer: Knows the chat template.
        chat_template: Whether to put each prompt into it.

    Raises:
        DataError: A tokenizer without a chat template, where one is asked for.
    """
    names = dataset.features["label"].names
    answers = dataset["response"] if "response" in dataset.column_names else [names[i] for i in dataset["label"]]
    pairs = dataset["text_pair"] if "text_pair" in dataset.column_names else [""] * len(dataset)
    before, after = _around(config.prompt_template, "text")
    opening, closing = _chat(tokenizer) if chat_template else ("", "")
    # A language model learns words with the blank before them.
    blank = "" if chat_template or config.prompt_template[-1:].isspace() else " "
    found = []
    for text, pair, answer in zip(dataset["text"], pairs, answers, strict=True):
        filled = {"text_pair": pair, "choices": ", ".join(names)}
        start, end = opening + before.format_map(filled), after.format_map(filled) + closing
        found.append(Instruction(start, text, end, blank + answer.strip()))
    return found


def tokenize_instructions(
    rows: Sequence[Instruction], tokenizer: PreTrainedTokenizerBase, max_length: int, chat_template: bool = False
) -> Dataset:
    """Turn instructions into sequences of at most ``max_length`` tokens: prompt, answer, end.

    Where a sequence would be too long, first the end of its text is cut, then the end of its answer.

    Returns:
        Columns ``input_ids`` and ``labels``: the answer's tokens and the end, -100 at the prompt's.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    for row in rows:
        answer = [*tokenizer(row.answer, add_special_tokens=False)["input_ids"], end]
        prompt = _prompt_ids(row.prompt, tokenizer, not chat_template)
        too_many = len(prompt) + len(answer) - max_length
        if too_many > 0:
            shorter = _without_end(row.text, too_many, tokenizer)
            prompt = _prompt_ids(row.before + shorter + row.after, tokenizer, not chat_template)
            answer = answer[: max(1, max_length // 2, max_length - len(prompt))]
            prompt = prompt[max(0, len(prompt) + len(answer) - max_length) :]
        columns["input_ids"].append(prompt + answer)
        columns["labels"].append([IGNORED] * len(prompt) + answer)
    return Dataset.from_dict(columns)


def prompt_ids(
    row: Instruction, tokenizer: PreTrainedTokenizerBase, max_length: int, chat_template: bool = False
) -> list[int]:
    """Return a prompt's tokens alone, its text cut so that they are at most ``max_length``."""
    ids = _prompt_ids(row.prompt, tokenizer, not chat_template)
    if len(ids) <= max_length:
        return ids
    shorter = _without_end(row.text, len(ids) - max_length, tokenizer)
    return _prompt_ids(row.before + shorter + row.after, tokenizer, not chat_template)[-max_length:]


def pack_sequences(dataset: Dataset, max_length: int) -> Dataset:
    """Put sequences one after another, as many as fit into ``max_length`` tokens, in their order.

    Returns:
        Columns ``input_ids``, ``labels`` and ``position_ids``, which start again at 0 with each sequence: transformers
        lets none see the one before it. No sequence's first token is learnt, so none is predicted from its neighbour.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for ids, labels in zip(dataset["input_ids"], dataset["labels"], strict=True):
        if not columns["input_ids"] or len(columns["input_ids"][-1]) + len(ids) > max_length:
            for column in columns.values():
                column.append([])
        columns["input_ids"][-1] += ids
        columns["labels"][-1] += [IGNORED, *labels[1:]]
        columns["position_ids"][-1] += range(len(ids))
    return Dataset.from_dict(columns)


def _around(template: str, field: str) -> tuple[str, str]:
    before, _, after = template.partition(f"{{{field}}}")
    return before, after


def _chat(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what a chat template puts before and after a prompt."""
    if not tokenizer.chat_template:
        raise DataError(
            "model.chat_template = true, but the model's tokenizer has no chat template; set it to false, or take a "
            "model that was made for chats."
        )
    marker = "\x00prompt\x00"
    said: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
    )
    before, _, after = str(said).partition(marker)
    return before, after


def _prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase, special: bool) -> list[int]:
    """Tokenise a prompt with what its tokenizer puts at the start of a text, and nothing at the end."""
    ids: list[int] = list(tokenizer(prompt, add_special_tokens=special)["input_ids"])
    closing = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    return ids[:-1] if special and len(ids) > 1 and ids[-1] in closing else ids


def _without_end(text: str, tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Cut so many tokens off a text's end."""
    if not tokenizer.is_fast:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return str(tokenizer.decode(ids[: max(0, len(ids) - tokens)]))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    kept = len(offsets) - tokens
    return text[: offsets[kept - 1][1]] if kept > 0 else ""

"""From text to padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedsvd.config import DataConfig, ModelConfig
from fedsvd.data.instructions import IGNORED, build_instructions, tokenize_instructions


def encode(dataset: Dataset, config: DataConfig, model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Turn rows into unpadded tokens and ``labels``, as the model's task needs them.

    Args:
        dataset: As `fedsvd.data.load` gives it.
        config: The group ``data``.
        model: The group ``model``.
        tokenizer: The model's.

    Raises:
        DataError: A chat template is asked for, and the tokenizer has none.
    """
    if model.task == "sequence_classification":
        return tokenize(dataset, tokenizer, model.max_length)
    rows = build_instructions(dataset, config, tokenizer, model.chat_template)
    return tokenize_instructions(rows, tokenizer, model.max_length, model.chat_template)


def tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Turn ``text`` (with ``text_pair``, where there is one) and ``label`` into unpadded tokens and ``labels``.

    Returns:
        Columns ``input_ids`` and ``labels``; of pairs, where the tokenizer tells the two apart, ``token_type_ids`` too.
    """
    pairs = list(dataset["text_pair"]) if "text_pair" in dataset.column_names else None
    encoded = tokenizer(list(dataset["text"]), pairs, truncation=True, max_length=max_length)
    columns = {"input_ids": encoded["input_ids"], "labels": list(dataset["label"])}
    if pairs is not None and "token_type_ids" in encoded:
        columns["token_type_ids"] = encoded["token_type_ids"]
    return Dataset.from_dict(columns)


def collate(examples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Pad examples to the longest among them.

    Returns:
        ``input_ids``, ``attention_mask`` and (of pairs) ``token_type_ids`` of shape (batch, length), ``labels`` of
        shape (batch,), or (batch, length) of a language model. Of packed sequences ``position_ids`` in the place of
        ``attention_mask``: where they start again at 0, another sequence begins, and so does the padding.
    """
    if "position_ids" in examples[0]:
        length = max(len(example["input_ids"]) for example in examples)
        fills = {"input_ids": tokenizer.pad_token_id, "position_ids": None, "labels": IGNORED}
        return {name: _padded([example[name] for example in examples], fill, length) for name, fill in fills.items()}
    names = [name for name in ("input_ids", "token_type_ids") if name in examples[0]]
    batch = tokenizer.pad(
        {name: [example[name] for example in examples] for name in names}, return_tensors="pt", padding_side="right"
    )
    labels = [example["labels"] for example in examples]
    length = batch["input_ids"].shape[1]
    target = _padded(labels, IGNORED, length) if isinstance(labels[0], list) else torch.tensor(labels)
    return {**{name: batch[name] for name in (*names, "attention_mask")}, "labels": target}


def _padded(rows: Sequence[list[int]], fill: int | None, length: int) -> Tensor:
    """Fill rows up to a length; None counts up from 0."""
    ends = [list(range(length - len(row))) if fill is None else [fill] * (length - len(row)) for row in rows]
    return torch.tensor([row + end for row, end in zip(rows, ends, strict=True)])


def sort_by_length(dataset: Dataset) -> Dataset:
    """Return the examples from the shortest to the longest; those of one length stay in their order."""
    lengths = [len(ids) for ids in dataset["input_ids"]]
    return dataset.select(sorted(range(len(lengths)), key=lengths.__getitem__))


def eval_batches(dataset: Dataset, batch_size: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Tensor]]:
    """Yield all examples in batches of similar length, which wastes the least on padding."""
    rows = list(sort_by_length(dataset))
    for start in range(0, len(rows), batch_size):
        yield collate(rows[start : start + batch_size], tokenizer)

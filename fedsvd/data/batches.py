"""From text to padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase


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
        shape (batch,).
    """
    names = [name for name in ("input_ids", "token_type_ids") if name in examples[0]]
    batch = tokenizer.pad({name: [example[name] for example in examples] for name in names}, return_tensors="pt")
    labels = torch.tensor([example["labels"] for example in examples])
    return {**{name: batch[name] for name in (*names, "attention_mask")}, "labels": labels}


def by_length(dataset: Dataset) -> Dataset:
    """Return the examples from the shortest to the longest; those of one length stay in their order."""
    lengths = [len(ids) for ids in dataset["input_ids"]]
    return dataset.select(sorted(range(len(lengths)), key=lengths.__getitem__))


def eval_batches(dataset: Dataset, batch_size: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Tensor]]:
    """Yield all examples in batches of similar length, which wastes the least on padding."""
    rows = list(by_length(dataset))
    for start in range(0, len(rows), batch_size):
        yield collate(rows[start : start + batch_size], tokenizer)

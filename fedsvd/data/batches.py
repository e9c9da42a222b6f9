"""From text to padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Turn ``text`` and ``label`` into ``input_ids`` (unpadded) and ``labels``."""
    encoded = tokenizer(list(dataset["text"]), truncation=True, max_length=max_length)
    return Dataset.from_dict({"input_ids": encoded["input_ids"], "labels": list(dataset["label"])})


def collate(examples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Pad examples to the longest among them.

    Returns:
        ``input_ids`` and ``attention_mask`` of shape (batch, length), ``labels`` of shape (batch,).
    """
    batch = tokenizer.pad({"input_ids": [example["input_ids"] for example in examples]}, return_tensors="pt")
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def by_length(dataset: Dataset) -> Dataset:
    """Return the examples from the shortest to the longest; those of one length stay in their order."""
    lengths = [len(ids) for ids in dataset["input_ids"]]
    return dataset.select(sorted(range(len(lengths)), key=lengths.__getitem__))


def eval_batches(dataset: Dataset, batch_size: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Tensor]]:
    """Yield all examples in batches of similar length, which wastes the least on padding."""
    rows = list(by_length(dataset))
    for start in range(0, len(rows), batch_size):
        yield collate(rows[start : start + batch_size], tokenizer)

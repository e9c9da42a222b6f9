"""Tokenization of datasets and padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedsvd.config import DataConfig, ModelConfig
from fedsvd.data.instructions import IGNORED
from fedsvd.data.sequences import tokenize_rows
from fedsvd.data.targets import dataset_classes, scaled
from fedsvd.data.words import tokenize_words

_Encoder = Callable[[Dataset, DataConfig, ModelConfig, PreTrainedTokenizerBase], Dataset]


def encode(dataset: Dataset, config: DataConfig, model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Tokenize a dataset into unpadded token ids and ``labels`` for the model's task.

    Args:
        dataset: A dataset as returned by `fedsvd.data.load`.
        config: The ``data`` configuration group.
        model: The ``model`` configuration group.
        tokenizer: The model's tokenizer.

    Raises:
        DataError: See `fedsvd.data.sequences.tokenize_rows` and `fedsvd.data.words.locate_words`.
    """
    return _ENCODERS[model.task](dataset, config, model, tokenizer)


def tokenize(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: Sequence[Any] | None = None
) -> Dataset:
    """Tokenize ``text`` (and ``text_pair`` if present) into unpadded token ids.

    Args:
        dataset: Texts and labels.
        tokenizer: The model's tokenizer.
        max_length: Longer texts are truncated to so many tokens.
        labels: The column ``labels`` of the result. Default: ``label`` of the dataset.

    Returns:
        A dataset with columns ``input_ids`` and ``labels``. For text pairs, ``token_type_ids`` is included if the
        tokenizer produces it.
    """
    pairs = dataset["text_pair"][:] if "text_pair" in dataset.column_names else None
    encoded = tokenizer(dataset["text"][:], pairs, truncation=True, max_length=max_length)
    columns = {"input_ids": encoded["input_ids"], "labels": dataset["label"][:] if labels is None else labels}
    if pairs is not None and "token_type_ids" in encoded:
        columns["token_type_ids"] = encoded["token_type_ids"]
    return Dataset.from_dict(columns)


def padded_width(length: int, max_length: int) -> int:
    """Return the length to which an example is padded where it must not depend on other examples.

    It is a multiple of 16 up to 64 tokens, and then one of two values between two powers of two: few enough different
    values for large batches, and few enough padding tokens.

    Args:
        length: Number of tokens of the example.
        max_length: ``model.max_length``, which is not exceeded.
    """
    step = max(16, 2 ** ((length - 1).bit_length() - 2)) if length > 64 else 16
    return max(length, min(-(-length // step) * step, max_length))


def collate(
    examples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, width: int | None = None
) -> dict[str, Tensor]:
    """Pad examples to the same length and return them as a batch.

    Args:
        examples: Rows of a dataset that `encode` has returned.
        tokenizer: The model's tokenizer.
        width: The padded length; None: that of the longest example.

    Returns:
        ``input_ids``, ``attention_mask`` and (for text pairs) ``token_type_ids`` of shape (batch, length), and
        ``labels`` of shape (batch,), (batch, classes) for several classes per text, as 0.0 or 1.0, or (batch, length)
        for a language model and for tags of words. Packed sequences have ``position_ids``
        instead of ``attention_mask``: positions restart at 0 at the start of each sequence and of the padding.
    """
    length = width or max(len(example["input_ids"]) for example in examples)
    if "position_ids" in examples[0]:
        fills = {"input_ids": tokenizer.pad_token_id, "position_ids": None, "labels": IGNORED}
        return {name: _pad_rows([example[name] for example in examples], fill, length) for name, fill in fills.items()}
    names = [name for name in ("input_ids", "token_type_ids") if name in examples[0]]
    batch = tokenizer.pad(
        {name: [example[name] for example in examples] for name in names},
        padding="max_length",
        max_length=length,
        return_tensors="pt",
        padding_side="right",
    )
    labels = [example["labels"] for example in examples]
    # Labels of tokens are integers.
    per_token = isinstance(labels[0], list) and isinstance(labels[0][0], int)
    target = _pad_rows(labels, IGNORED, length) if per_token else torch.tensor(labels)
    return {**{name: batch[name] for name in (*names, "attention_mask")}, "labels": target}


def _pad_rows(rows: Sequence[list[int]], fill: int | None, length: int) -> Tensor:
    """Pad rows to ``length`` with ``fill``; None pads with consecutive integers from 0."""
    paddings = [list(range(length - len(row))) if fill is None else [fill] * (length - len(row)) for row in rows]
    return torch.tensor([row + padding for row, padding in zip(rows, paddings, strict=True)])


def sort_by_length(dataset: Dataset) -> Dataset:
    """Return the examples sorted by token count, shortest first; the sort is stable."""
    lengths = [len(ids) for ids in dataset["input_ids"][:]]
    return dataset.select(sorted(range(len(lengths)), key=lengths.__getitem__))


def eval_batches(dataset: Dataset, batch_size: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Tensor]]:
    """Yield all examples in batches of similar length, which minimizes padding."""
    rows = list(sort_by_length(dataset))
    for start in range(0, len(rows), batch_size):
        yield collate(rows[start : start + batch_size], tokenizer)


def _indicators(dataset: Dataset, config: DataConfig) -> list[list[float]]:
    """Return 1.0 for each class of a text and 0.0 for the others."""
    numbers = range(len(dataset_classes(dataset)))
    return [[float(number in row) for number in numbers] for row in map(set, dataset["label"][:])]


def _encode_texts(labels: Callable[[Dataset, DataConfig], list[Any]]) -> _Encoder:
    """Return the encoder of a task whose model reads whole texts, given the column ``labels``."""
    return lambda dataset, config, model, tokenizer: tokenize(
        dataset, tokenizer, model.max_length, labels(dataset, config)
    )


_ENCODERS: Mapping[str, _Encoder] = {
    "sequence_classification": _encode_texts(lambda dataset, config: dataset["label"][:]),
    "multi_label_classification": _encode_texts(_indicators),
    "regression": _encode_texts(lambda dataset, config: scaled(dataset["label"][:], config.label_range)),
    "token_classification": lambda dataset, config, model, tokenizer: tokenize_words(
        dataset, tokenizer, model.max_length
    ),
    "causal_lm": tokenize_rows,
}

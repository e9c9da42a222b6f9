"""Train/test splits, and limits on their sizes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from fedsvd.errors import DataError


def hold_out(dataset: Dataset, test_fraction: float, seed: int) -> DatasetDict:
    """Split a dataset into ``train`` and ``test``, both shuffled and, if a row has one class, stratified by class.

    Args:
        dataset: Dataset with a column ``label``.
        test_fraction: Fraction of rows to hold out, between 0 and 1.
        seed: Seed of the shuffle.

    Raises:
        DataError: The fraction is out of range or leaves a split empty.
    """
    has_class = isinstance(dataset.features["label"], ClassLabel)
    labels = np.asarray(dataset["label"][:]) if has_class else np.zeros(len(dataset))
    generator = np.random.default_rng(seed)
    indices: dict[str, list[int]] = {"train": [], "test": []}
    for label in np.unique(labels):
        order = generator.permutation(np.flatnonzero(labels == label))
        num_test = round(len(order) * test_fraction)
        indices["test"] += order[:num_test].tolist()
        indices["train"] += order[num_test:].tolist()
    return _select(dataset, indices, test_fraction, generator)


def hold_out_documents(dataset: Dataset, documents: Sequence[str], test_fraction: float, seed: int) -> DatasetDict:
    """Split a dataset like `hold_out`, but by document: all rows of a document are in the same split.

    Args:
        dataset: The rows to split.
        documents: The document of each row.
        test_fraction: Fraction of the documents to hold out, between 0 and 1.
        seed: Seed of the shuffle.

    Raises:
        DataError: The fraction is out of range or leaves a split empty.
    """
    generator = np.random.default_rng(seed)
    names, document_ids = np.unique(np.asarray(documents), return_inverse=True)
    test_ids = generator.permutation(len(names))[: round(len(names) * test_fraction)]
    is_test = np.isin(document_ids, test_ids)
    indices = {"train": np.flatnonzero(~is_test).tolist(), "test": np.flatnonzero(is_test).tolist()}
    return _select(dataset, indices, test_fraction, generator)


def _select(
    dataset: Dataset, indices: Mapping[str, Sequence[int]], test_fraction: float, generator: np.random.Generator
) -> DatasetDict:
    if not 0 < test_fraction < 1:
        raise DataError(f"data.test_fraction = {test_fraction} is invalid; set it to a number between 0 and 1.")
    if not all(indices.values()):
        raise DataError(
            f"data.test_fraction = {test_fraction} leaves a split of {len(dataset)} texts empty; choose a fraction "
            "that leaves texts for training and testing, or provide more texts."
        )
    return DatasetDict({name: dataset.select(generator.permutation(rows)) for name, rows in indices.items()})


def shuffle_splits(splits: DatasetDict, seed: int) -> DatasetDict:
    """Shuffle the splits of a dataset that is already divided into ``train`` and ``test``."""
    generator = np.random.default_rng(seed)
    return DatasetDict({name: split.select(generator.permutation(len(split))) for name, split in splits.items()})


def draw_examples(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """Draw rows by a hash of the seed and each row's own content; equal rows differ by their number.

    Whether a row is among those of the smallest hashes depends on the others only through their hashes. One more row
    thus brings at most one row in and one out, as a draw by position would not.

    Args:
        dataset: Rows whose values are texts, numbers or lists of them.
        count: Number of rows to draw, in their order; None, or no fewer than there are, for all.
        seed: Seed of the draw.
    """
    if count is None or count >= len(dataset):
        return dataset
    seen = Counter[str]()
    hashes = []
    for row in dataset:
        content = json.dumps(row, sort_keys=True)
        hashes.append(sha256(f"{seed} {seen[content]} {content}".encode()).digest())
        seen[content] += 1
    return dataset.select(sorted(sorted(range(len(dataset)), key=hashes.__getitem__)[:count]))


def limit_examples(splits: DatasetDict, max_train_examples: int | None, max_test_examples: int | None) -> DatasetDict:
    """Return the first rows of each split, up to the given number, in memory; None means no limit.

    Raises:
        DataError: A limit is below 1.
    """
    limits = {"train": max_train_examples, "test": max_test_examples}
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise DataError(f"data.max_{name}_examples = {limit} is invalid; set it to 1 or more, or null for all.")
    # Copy the rows: partitioning would otherwise have to flatten nested index mappings.
    return DatasetDict(
        {name: Dataset.from_dict(split[: limits[name]], features=split.features) for name, split in splits.items()}
    )

"""Which texts are trained on and which are held out, and how many of each are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset, DatasetDict

from fedsvd.errors import DataError


def hold_out(dataset: Dataset, test_fraction: float, seed: int) -> DatasetDict:
    """Split a data set into ``train`` and ``test``, both shuffled, with each class in its share of the whole.

    Args:
        dataset: With a column ``label``.
        test_fraction: Share held out, between 0 and 1.
        seed: Of the shuffle.

    Raises:
        DataError: A share out of range, or one that leaves a side empty.
    """
    labels = np.asarray(dataset["label"])
    generator = np.random.default_rng(seed)
    sides: dict[str, list[int]] = {"train": [], "test": []}
    for label in np.unique(labels):
        order = generator.permutation(np.flatnonzero(labels == label))
        cut = round(len(order) * test_fraction)
        sides["test"] += order[:cut].tolist()
        sides["train"] += order[cut:].tolist()
    return _select(dataset, sides, test_fraction, generator)


def hold_out_documents(dataset: Dataset, documents: Sequence[str], test_fraction: float, seed: int) -> DatasetDict:
    """Split as `hold_out`, but by documents: all parts of one land on one side.

    Args:
        dataset: Any rows.
        documents: The document that each row is a part of.
        test_fraction: Share of the documents held out.
        seed: Of the shuffle.

    Raises:
        DataError: As `hold_out`.
    """
    generator = np.random.default_rng(seed)
    names, numbers = np.unique(np.asarray(documents), return_inverse=True)
    held = generator.permutation(len(names))[: round(len(names) * test_fraction)]
    is_held = np.isin(numbers, held)
    sides = {"train": np.flatnonzero(~is_held).tolist(), "test": np.flatnonzero(is_held).tolist()}
    return _select(dataset, sides, test_fraction, generator)


def _select(
    dataset: Dataset, sides: Mapping[str, Sequence[int]], test_fraction: float, generator: np.random.Generator
) -> DatasetDict:
    if not 0 < test_fraction < 1:
        raise DataError(f"data.test_fraction = {test_fraction} is no share; give a number between 0 and 1.")
    if not all(sides.values()):
        raise DataError(
            f"data.test_fraction = {test_fraction} of {len(dataset)} texts leaves one side empty; choose a share that "
            "leaves texts for both, or get more texts."
        )
    return DatasetDict({name: dataset.select(generator.permutation(side)) for name, side in sides.items()})


def shuffle_splits(sides: DatasetDict, seed: int) -> DatasetDict:
    """Shuffle both sides of a data set that comes split."""
    generator = np.random.default_rng(seed)
    return DatasetDict({name: side.select(generator.permutation(len(side))) for name, side in sides.items()})


def limit_examples(sides: DatasetDict, max_train_examples: int | None, max_test_examples: int | None) -> DatasetDict:
    """Keep the first so many rows of each side, in memory; None keeps all.

    Raises:
        DataError: A limit below 1.
    """
    limits = {"train": max_train_examples, "test": max_test_examples}
    for side, limit in limits.items():
        if limit is not None and limit < 1:
            raise DataError(f"data.max_{side}_examples = {limit} leaves nothing; give 1 or more, or null for all.")
    # Rows in memory, in their order: what is cut and dealt out later would else flatten selections of selections.
    return DatasetDict(
        {name: Dataset.from_dict(side[: limits[name]], features=side.features) for name, side in sides.items()}
    )

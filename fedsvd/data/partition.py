"""Partitioning of datasets among clients with flwr-datasets, and dataset fingerprints.

A privacy ledger records the fingerprint of the data that it accounts for.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from datasets import ClassLabel, Dataset

from fedsvd.data.rows import stored_name
from fedsvd.data.values import abbreviate, sorted_values
from fedsvd.errors import DataError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

# flwr_datasets imports its plotting modules (seaborn, SciPy, matplotlib), so functions import it when they need it.
_SKEWS = ("linear", "square", "exponential")
NAMES = ("iid", "dirichlet", "by_column", "quantity_skew")


def partition(
    dataset: Dataset,
    *,
    name: str,
    num_partitions: int,
    dirichlet_alpha: float,
    min_partition_size: int,
    seed: int,
    label_column: str = "label",
    column: str = "domain",
    skew: str = "linear",
) -> list[Dataset]:
    """Split a dataset among clients; each example is assigned to exactly one client.

    Args:
        dataset: The examples, in any order (they may be sorted by class).
        name: ``iid``, ``dirichlet``, ``by_column`` or ``quantity_skew``.
        num_partitions: Number of clients.
        dirichlet_alpha: Concentration of the Dirichlet distribution of each label's shares among clients.
        min_partition_size: Minimum number of examples per client, at least 1. ``dirichlet`` redraws, up to eleven
            times, until each client has that many.
        seed: Seed of the split; equal seeds give equal splits.
        label_column: The column whose classes ``dirichlet`` distributes.
        column: The column for ``by_column``, which creates one client for each of its values. Clients are numbered by
            value: as numbers if all values are numbers, otherwise as strings.
        skew: Sizes for ``quantity_skew``: proportional to k (``linear``), k² (``square``) or eᵏ (``exponential``) for
            client k = 1, 2, …

    Raises:
        DataError: ``num_partitions`` is below 1, there are fewer examples than the clients need, the name or the
            column is unknown, the concentration is not positive, or no draw gives each client the minimum.
    """
    if num_partitions < 1:
        raise DataError(f"federation.num_clients = {num_partitions} is invalid; set it to 1 or more.")
    # A client without examples can neither train nor be accounted for.
    min_size = max(1, min_partition_size)
    if num_partitions * min_size > len(dataset):
        raise DataError(
            f"{len(dataset)} examples cannot give {num_partitions} clients {min_size} each; lower "
            "federation.num_clients or partition.min_partition_size, or raise data.max_train_examples."
        )
    if name == "dirichlet":
        return _dirichlet(dataset, num_partitions, label_column, dirichlet_alpha, min_size, seed)
    if name == "by_column":
        parts = _by_column(dataset, num_partitions, column)
    elif name == "iid":
        shuffled = _shuffle(dataset, seed)
        parts = [shuffled.shard(num_partitions, index, contiguous=True) for index in range(num_partitions)]
    elif name == "quantity_skew" and skew in _SKEWS:
        parts = _quantity_skew(dataset, num_partitions, skew, min_size, seed)
    else:
        raise DataError(
            f"partition.name = {name!r} (partition.skew = {skew!r}) is unknown; allowed: {', '.join(NAMES)}, with "
            f"partition.skew one of {', '.join(_SKEWS)}."
        )
    _check_smallest(name, parts, min_size)
    return parts


def _check_smallest(name: str, parts: Sequence[Dataset], min_size: int) -> None:
    smallest = min(map(len, parts))
    if smallest < min_size:
        raise _too_small(name, smallest, min_size)


def _too_small(name: str, smallest: int, min_size: int) -> DataError:
    return DataError(
        f"partition={name} gives a client {smallest} examples, fewer than partition.min_partition_size = "
        f"{min_size}; lower partition.min_partition_size or federation.num_clients, or add data."
    )


def _dirichlet(
    dataset: Dataset, num_partitions: int, label_column: str, dirichlet_alpha: float, min_size: int, seed: int
) -> list[Dataset]:
    if not dirichlet_alpha > 0:
        raise DataError(f"partition.dirichlet_alpha = {dirichlet_alpha} is invalid; set it to a number above 0.")
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=num_partitions,
        partition_by=label_column,
        alpha=float(dirichlet_alpha),
        min_partition_size=min_size,
        self_balancing=False,
        shuffle=True,
        seed=seed,
    )
    try:
        return _load_all(partitioner, dataset, num_partitions)
    except ValueError as error:
        raise DataError(
            f"no split at partition.dirichlet_alpha = {dirichlet_alpha} gives each of {num_partitions} clients "
            f"{min_size} examples ({error}); raise partition.dirichlet_alpha or lower partition.min_partition_size."
        ) from error


def _by_column(dataset: Dataset, num_partitions: int, column: str) -> list[Dataset]:
    # A column of a user's file whose name is that of a role is stored under another one.
    name = stored_name(column) if stored_name(column) in dataset.column_names else column
    if name not in dataset.column_names:
        raise DataError(
            f"partition.column = {column!r} is not a column of the dataset; set it to one of "
            f"{', '.join(dataset.column_names)}."
        )
    row_values, feature = dataset[name][:], dataset.features[name]
    distinct = set(row_values)
    values = sorted_values(list(distinct)) if all(isinstance(value, str) for value in distinct) else sorted(distinct)
    if len(values) != num_partitions:
        shown = [feature.names[value] for value in values] if isinstance(feature, ClassLabel) else values
        raise DataError(
            f"federation.num_clients = {num_partitions} is invalid with partition.column = {column!r}, which has "
            f"{len(values)} values ({abbreviate(shown, 10)}): set federation.num_clients={len(values)}."
        )
    # flwr-datasets' NaturalIdPartitioner is unsuitable: it numbers clients by first appearance, which depends on the
    # shuffle, and prints progress bars.
    rows: dict[object, list[int]] = {value: [] for value in values}
    for index, value in enumerate(row_values):
        rows[value].append(index)
    return [dataset.select(rows[value]) for value in values]


def _quantity_skew(dataset: Dataset, num_partitions: int, skew: str, min_size: int, seed: int) -> list[Dataset]:
    from flwr_datasets.partitioner import ExponentialPartitioner, LinearPartitioner, SquarePartitioner

    partitioners = {"linear": LinearPartitioner, "square": SquarePartitioner, "exponential": ExponentialPartitioner}
    try:
        # With many clients, eᵏ overflows, and the shares of all but the largest clients are 0.
        with np.errstate(over="ignore", invalid="ignore"):
            return _load_all(partitioners[skew](num_partitions), _shuffle(dataset, seed), num_partitions)
    except ValueError as error:
        raise _too_small("quantity_skew", 0, min_size) from error


def _shuffle(dataset: Dataset, seed: int) -> Dataset:
    # Shards are contiguous and flwr-datasets takes no seed. If the data is sorted by class, so would the shards be.
    return dataset.select(np.random.default_rng(seed).permutation(len(dataset)))


def _load_all(partitioner: Partitioner, dataset: Dataset, num_partitions: int) -> list[Dataset]:
    partitioner.dataset = dataset
    with warnings.catch_warnings():
        # Redrawing is expected, and running out of draws raises an error.
        warnings.filterwarnings("ignore", message="The specified min_partition_size", category=UserWarning)
        return [partitioner.load_partition(index) for index in range(num_partitions)]


def fingerprint(dataset: Dataset) -> str:
    """Return the SHA-256 (hexadecimal) of all texts, pairs, labels, responses and messages, independent of their order.

    The fingerprint does not hide the data: anybody who guesses all of a small dataset can confirm the guess.
    """
    names = ("label", "text", "text_pair", "response", "messages")
    columns = [dataset[name][:] for name in names if name in dataset.column_names]
    digests = sorted(hashlib.sha256("\x1f".join(map(str, row)).encode()).digest() for row in zip(*columns, strict=True))
    return hashlib.sha256(b"".join(digests)).hexdigest()

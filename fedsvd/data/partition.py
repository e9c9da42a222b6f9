"""Who holds what: partitions by flwr-datasets, and the fingerprint that binds a ledger to its data."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    ExponentialPartitioner,
    IidPartitioner,
    LinearPartitioner,
    Partitioner,
    SquarePartitioner,
)

from fedsvd.errors import DataError

_SKEWS: Mapping[str, Callable[[int], Partitioner]] = {
    "linear": LinearPartitioner,
    "square": SquarePartitioner,
    "exponential": ExponentialPartitioner,
}
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
    """Split a data set among clients; each example goes to exactly one.

    Args:
        dataset: In any order, also sorted by class.
        name: ``iid``, ``dirichlet``, ``by_column`` or ``quantity_skew``.
        num_partitions: How many clients.
        dirichlet_alpha: Concentration of each label's shares among clients.
        min_partition_size: Fewest examples of a client, at least 1. ``dirichlet`` draws again, eleven times at most,
            until each client holds so many.
        seed: The same seed gives the same split.
        label_column: The column whose classes ``dirichlet`` deals out.
        column: The column of which ``by_column`` makes a client for each value.
        skew: Sizes of ``quantity_skew``: proportional to k, k² or eᵏ for client k = 1, 2, …

    Raises:
        DataError: No partition asked for, fewer examples than the clients need, an unknown name or column, a
            concentration that is not positive, or no draw that gives each client its fewest.
    """
    if num_partitions < 1:
        raise DataError(f"federation.num_clients = {num_partitions} leaves nobody to hold the data; give 1 or more.")
    # A client without examples can neither train nor be accounted for.
    fewest = max(1, min_partition_size)
    if num_partitions * fewest > len(dataset):
        raise DataError(
            f"{len(dataset)} examples cannot give {num_partitions} clients {fewest} each; lower "
            "federation.num_clients or partition.min_partition_size, or raise data.max_train_examples."
        )
    if name == "dirichlet":
        return _dirichlet(dataset, num_partitions, label_column, dirichlet_alpha, fewest, seed)
    if name == "by_column":
        parts = _by_column(dataset, num_partitions, column)
    elif name == "iid":
        parts = _shuffled(IidPartitioner(num_partitions=num_partitions), dataset, num_partitions, seed)
    elif name == "quantity_skew" and skew in _SKEWS:
        parts = _shuffled(_SKEWS[skew](num_partitions), dataset, num_partitions, seed)
    else:
        raise DataError(
            f"partition.name = {name!r} (partition.skew = {skew!r}) is not known; allowed: {', '.join(NAMES)}, with "
            f"partition.skew one of {', '.join(_SKEWS)}."
        )
    smallest = min(map(len, parts))
    if smallest < fewest:
        raise DataError(
            f"partition={name} gives a client {smallest} examples, fewer than partition.min_partition_size = {fewest}; "
            "lower that or federation.num_clients, or bring more data."
        )
    return parts


def _dirichlet(
    dataset: Dataset, num_partitions: int, label_column: str, dirichlet_alpha: float, fewest: int, seed: int
) -> list[Dataset]:
    if not dirichlet_alpha > 0:
        raise DataError(f"partition.dirichlet_alpha = {dirichlet_alpha} is no concentration; give a number above 0.")
    partitioner = DirichletPartitioner(
        num_partitions=num_partitions,
        partition_by=label_column,
        alpha=float(dirichlet_alpha),
        min_partition_size=fewest,
        self_balancing=False,
        shuffle=True,
        seed=seed,
    )
    try:
        return _load_all(partitioner, dataset, num_partitions)
    except ValueError as error:
        raise DataError(
            f"no split at partition.dirichlet_alpha = {dirichlet_alpha} gives each of {num_partitions} clients "
            f"{fewest} examples ({error}); raise it, or lower partition.min_partition_size."
        ) from error


def _by_column(dataset: Dataset, num_partitions: int, column: str) -> list[Dataset]:
    if column not in dataset.column_names:
        raise DataError(
            f"partition.column = {column!r} is not a column of the data, which have {', '.join(dataset.column_names)}."
        )
    silos = sorted(set(dataset[column]))
    if len(silos) != num_partitions:
        raise DataError(
            f"partition.column = {column!r} has {len(silos)} values ({', '.join(map(str, silos[:10]))}), and "
            f"federation.num_clients is {num_partitions}: set federation.num_clients={len(silos)}."
        )
    # Not flwr-datasets' NaturalIdPartitioner: it numbers silos by first appearance, which hangs on the shuffle, and
    # draws progress bars of its own.
    values = np.asarray(dataset[column])
    return [dataset.select(np.flatnonzero(values == silo)) for silo in silos]


def _shuffled(partitioner: Partitioner, dataset: Dataset, num_partitions: int, seed: int) -> list[Dataset]:
    # flwr-datasets cuts contiguous shards and takes no seed: of data sorted by class they would hold one class each.
    shuffled = dataset.select(np.random.default_rng(seed).permutation(len(dataset)))
    return _load_all(partitioner, shuffled, num_partitions)


def _load_all(partitioner: Partitioner, dataset: Dataset, num_partitions: int) -> list[Dataset]:
    partitioner.dataset = dataset
    with warnings.catch_warnings():
        # Drawing again is what was asked for; draws that run out end in an error.
        warnings.filterwarnings("ignore", message="The specified min_partition_size", category=UserWarning)
        return [partitioner.load_partition(index) for index in range(num_partitions)]


def fingerprint(dataset: Dataset) -> str:
    """Return a SHA-256, in hexadecimal, over all texts, pairs, labels and answers: the same for them in any order.

    It is no secret: who can guess a small data set whole can confirm the guess.
    """
    columns = [dataset[name] for name in ("label", "text", "text_pair", "response") if name in dataset.column_names]
    digests = sorted(hashlib.sha256("\x1f".join(map(str, row)).encode()).digest() for row in zip(*columns, strict=True))
    return hashlib.sha256(b"".join(digests)).hexdigest()

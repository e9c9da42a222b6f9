"""Who holds what: partitions by flwr-datasets, and the fingerprint that binds a ledger to its data."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner

from fedsvd.errors import DataError


def partition(
    dataset: Dataset,
    *,
    name: str,
    num_partitions: int,
    dirichlet_alpha: float,
    min_partition_size: int,
    seed: int,
    label_column: str = "label",
) -> list[Dataset]:
    """Split a data set among clients; each example goes to exactly one.

    Args:
        dataset: In any order, also sorted by class.
        name: ``iid`` or ``dirichlet``.
        num_partitions: How many clients.
        dirichlet_alpha: Concentration of each label's shares among clients.
        min_partition_size: Fewest examples of a client, at least 1. Shares are drawn again, eleven times at most, until
            each client holds so many.
        seed: The same seed gives the same split.
        label_column: The column whose classes ``dirichlet`` deals out.

    Raises:
        DataError: No partition asked for, fewer examples than the clients need, an unknown name, a concentration that
            is not positive, or no draw that gives each client its fewest.
    """
    if num_partitions < 1:
        raise DataError(f"federation.num_clients = {num_partitions} leaves nobody to hold the data; give 1 or more.")
    # A client without examples can neither train nor be accounted for.
    min_partition_size = max(1, min_partition_size)
    if num_partitions * min_partition_size > len(dataset):
        raise DataError(
            f"{len(dataset)} examples cannot give {num_partitions} clients {min_partition_size} each; lower "
            "federation.num_clients or partition.min_partition_size, or raise data.max_train_examples."
        )
    if name == "iid":
        return _iid(dataset, num_partitions, seed)
    if name != "dirichlet":
        raise DataError(f"partition.name = {name!r} is not known; allowed: iid, dirichlet.")
    if not dirichlet_alpha > 0:
        raise DataError(f"partition.dirichlet_alpha = {dirichlet_alpha} is no concentration; give a number above 0.")
    partitioner = DirichletPartitioner(
        num_partitions=num_partitions,
        partition_by=label_column,
        alpha=float(dirichlet_alpha),
        min_partition_size=min_partition_size,
        self_balancing=False,
        shuffle=True,
        seed=seed,
    )
    try:
        return _load_all(partitioner, dataset, num_partitions)
    except ValueError as error:
        raise DataError(
            f"no split at partition.dirichlet_alpha = {dirichlet_alpha} gives each of {num_partitions} clients "
            f"{min_partition_size} examples ({error}); raise it, or lower partition.min_partition_size."
        ) from error


def _iid(dataset: Dataset, num_partitions: int, seed: int) -> list[Dataset]:
    # flwr-datasets cuts contiguous shards and takes no seed: of data sorted by class they would hold one class each.
    shuffled = dataset.select(np.random.default_rng(seed).permutation(len(dataset)))
    return _load_all(IidPartitioner(num_partitions=num_partitions), shuffled, num_partitions)


def _load_all(partitioner: Partitioner, dataset: Dataset, num_partitions: int) -> list[Dataset]:
    partitioner.dataset = dataset
    with warnings.catch_warnings():
        # Drawing again is what was asked for; draws that run out end in an error.
        warnings.filterwarnings("ignore", message="The specified min_partition_size", category=UserWarning)
        return [partitioner.load_partition(index) for index in range(num_partitions)]


def fingerprint(dataset: Dataset) -> str:
    """Return a SHA-256, in hexadecimal, over all texts and labels: the same for the same examples in any order.

    It is no secret: who can guess a small data set whole can confirm the guess.
    """
    digests = sorted(
        hashlib.sha256(f"{label}\x1f{text}".encode()).digest()
        for text, label in zip(dataset["text"], dataset["label"], strict=True)
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()

"""Who holds what: partitions by flwr-datasets, and the fingerprint that binds a ledger to its data."""

from __future__ import annotations

import hashlib

from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner

from fedsvd.errors import DataError


def partition(
    dataset: Dataset, *, name: str, num_partitions: int, dirichlet_alpha: float, min_partition_size: int, seed: int
) -> list[Dataset]:
    """Split a data set among clients; each example goes to exactly one.

    Args:
        dataset: With a ``label`` column.
        name: ``iid`` or ``dirichlet``.
        num_partitions: How many clients.
        dirichlet_alpha: Concentration of each label's shares among clients.
        min_partition_size: Shares are drawn again until each client holds so many.
        seed: The same seed gives the same split.

    Raises:
        DataError: Fewer examples than the clients need, or an unknown name.
    """
    if num_partitions * min_partition_size > len(dataset):
        raise DataError(
            f"{len(dataset)} examples cannot give {num_partitions} clients {min_partition_size} each; lower "
            "federation.num_clients or partition.min_partition_size, or raise data.max_train_examples."
        )
    partitioner: Partitioner
    if name == "iid":
        partitioner = IidPartitioner(num_partitions=num_partitions)
    elif name == "dirichlet":
        partitioner = DirichletPartitioner(
            num_partitions=num_partitions,
            partition_by="label",
            alpha=dirichlet_alpha,
            min_partition_size=min_partition_size,
            self_balancing=False,
            shuffle=True,
            seed=seed,
        )
    else:
        raise DataError(f"partition.name = {name!r} is not known; allowed: iid, dirichlet.")
    partitioner.dataset = dataset
    try:
        return [partitioner.load_partition(index) for index in range(num_partitions)]
    except ValueError as error:
        raise DataError(
            f"no split at partition.dirichlet_alpha = {dirichlet_alpha} gives each of {num_partitions} clients "
            f"{min_partition_size} examples ({error}); raise it, or lower partition.min_partition_size."
        ) from error


def fingerprint(dataset: Dataset) -> str:
    """Return a SHA-256 over all texts and labels, in any order: it names the data without revealing them."""
    digests = sorted(
        hashlib.sha256(f"{label}\x1f{text}".encode()).digest()
        for text, label in zip(dataset["text"], dataset["label"], strict=True)
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()

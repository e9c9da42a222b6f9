"""The schema of the group ``partition``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass

from fedsvd.config.group import ConfigGroup
from fedsvd.config.types import Count, Text


@dataclass(frozen=True)
class PartitionConfig(ConfigGroup):
    """How the training examples are split among the clients.

    Attributes:
        name: ``iid``; ``dirichlet`` (label skew): the examples of each class are split in proportions drawn from a
            Dirichlet distribution; ``by_column``: one client per value of a column; ``quantity_skew``: IID data of
            different sizes.
        dirichlet_alpha: Concentration α of the Dirichlet distribution; smaller values give stronger label skew.
        column: The column of ``by_column``.
        skew: How sizes grow from client to client: ``linear``, ``square`` or ``exponential``.
        min_partition_size: Minimum number of examples of a client.
    """

    group: ClassVar[str] = "partition"

    name: Literal["iid", "dirichlet", "by_column", "quantity_skew"]
    dirichlet_alpha: PositiveFloat = 0.5
    column: Text = "domain"
    skew: Literal["linear", "square", "exponential"] = "linear"
    min_partition_size: Count = 10

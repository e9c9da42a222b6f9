"""The schema of the groups ``model``, ``data`` and ``partition``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fedsvd.config.types import Count, Fraction, Positive, Share
from fedsvd.validate import Matches, Range, check_fields


@dataclass(frozen=True)
class ModelConfig:
    """The base model and where its LoRA factors sit.

    Attributes:
        name: Name of the option.
        source: ``embedded:minilm``, ``embedded:tiny``, a folder or the id of a model on a hub.
        rank: Rank r of every factor pair B (d_out, r), A (r, d_in).
        lora_alpha: The product B A is scaled by ``lora_alpha / rank``.
        target_modules: Names of the linear layers that get factors.
        lora_layers: ``all``, or ``top_K``: factors in the K layers nearest the output only.
        lora_dropout: Dropout before A.
        max_length: Longest text, in tokens; what is beyond is cut off.
        attn_implementation: ``sdpa`` (fused), or ``eager`` (can be faster for short texts), as transformers has it.
    """

    name: str
    source: str
    rank: Count = 8
    lora_alpha: Positive = 16.0
    target_modules: tuple[str, ...] = ("query", "value")
    lora_layers: Annotated[str, Matches(r"all|top_[1-9]\d*", "all, or top_K for the K layers nearest the output")] = (
        "all"
    )
    lora_dropout: Share = 0.0
    max_length: Count = 64
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"

    def __post_init__(self) -> None:
        check_fields(self, "model")


@dataclass(frozen=True)
class DataConfig:
    """The labelled texts.

    Attributes:
        name: Name of the data set.
        test_fraction: Share of the examples that is held out for the test.
        min_abs_rating: Snippets whose mean rating (−4 … 4) is nearer to 0 than this are left out.
        max_train_examples: At most so many training examples; null for all.
        max_test_examples: At most so many held-out examples; null for all.
    """

    name: str
    test_fraction: Fraction = 0.2
    min_abs_rating: Annotated[float, Range(0, 4, open_high=True)] = 0.5
    max_train_examples: Count | None = None
    max_test_examples: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, "data")


@dataclass(frozen=True)
class PartitionConfig:
    """How the training examples are split among the clients.

    Attributes:
        name: ``iid``, or ``dirichlet``: each class is dealt out by shares drawn from a Dirichlet distribution.
        dirichlet_alpha: Its concentration; the smaller, the more unlike the clients.
        min_partition_size: Fewest examples of a client.
    """

    name: Literal["iid", "dirichlet"]
    dirichlet_alpha: Positive = 0.5
    min_partition_size: Count = 10

    def __post_init__(self) -> None:
        check_fields(self, "partition")

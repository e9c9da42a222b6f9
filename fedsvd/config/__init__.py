"""The schema of the configuration: one frozen dataclass per group, each field with its type and its allowed values.

The values themselves live in ``conf/``; `fedsvd.config.compose` puts them together. A field's annotation says all
that is allowed for it alone (`fedsvd.config.validate` reads it); what must hold between fields is said in
``__post_init__``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fedsvd.config.aggregation import AggregationConfig, check_aggregation
from fedsvd.config.federation import FederationConfig
from fedsvd.config.model import DataConfig, ModelConfig, PartitionConfig
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.config.secure_aggregation import check_secure
from fedsvd.config.tracking import TrackingConfig
from fedsvd.config.train import TrainConfig
from fedsvd.config.validate import Matches, Range, check_fields
from fedsvd.errors import ConfigError

__all__ = [
    "AggregationConfig",
    "Config",
    "DataConfig",
    "FederationConfig",
    "ModelConfig",
    "PartitionConfig",
    "PrivacyConfig",
    "TrackingConfig",
    "TrainConfig",
]


@dataclass(frozen=True)
class Config:
    """A whole experiment.

    Attributes:
        seed: From it come the initial adapter, the partitions, the batches and the sampling of clients.
        run_dir: Folder of the run; null leaves the choice to Hydra, or to Flower's run id.
        resume: Folder of an earlier run to go on with; null starts anew.
        float32_matmul_precision: As `torch.set_float32_matmul_precision` has it; below ``highest``, torch may pick
            kernels that round inputs (TF32, bfloat16) where the hardware has them.
        plots: Draw the run folder's pictures; false saves seconds where many small runs are compared.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
        method: ``name`` and the method's own options, which `fedsvd.methods` checks.
        model: See `ModelConfig`.
        data: See `DataConfig`.
        partition: See `PartitionConfig`.
        privacy: See `PrivacyConfig`.
        train: See `TrainConfig`.
        federation: See `FederationConfig`.
        aggregation: See `AggregationConfig`.
        tracking: See `TrackingConfig`.
    """

    seed: Annotated[int, Range(0, 2**32, open_high=True)]
    run_dir: str | None
    resume: str | None
    float32_matmul_precision: Literal["highest", "high", "medium"]
    plots: bool
    device: Annotated[str, Matches(r"auto|cpu|mps|cuda(:\d+)?", "auto, cpu, mps, cuda or cuda:N")]
    method: Mapping[str, Any]
    model: ModelConfig
    data: DataConfig
    partition: PartitionConfig
    privacy: PrivacyConfig
    train: TrainConfig
    federation: FederationConfig
    aggregation: AggregationConfig
    tracking: TrackingConfig

    def __post_init__(self) -> None:
        check_fields(self, "")
        asked = {"min_replies": self.federation.min_replies - 1, "min_completion": self.federation.min_completion}
        for key, beyond in asked.items():
            if self.privacy.name == "client_level" and beyond:
                raise ConfigError(
                    f"federation.{key} = {getattr(self.federation, key)} is not allowed with privacy.name = "
                    "client_level, where every round takes a noisy step however few take part (whether it does must "
                    "not tell who did): leave it out."
                )
        ranks = self.federation.client_ranks
        if ranks is not None and max(ranks) > self.model.rank:
            raise ConfigError(
                f"federation.client_ranks = {list(ranks)} is not allowed: no client's rank may exceed model.rank = "
                f"{self.model.rank}. Raise model.rank, or lower the clients' ranks."
            )
        if ranks is not None and self.privacy.name == "client_level":
            raise ConfigError(
                f"federation.client_ranks = {list(ranks)} is not possible with privacy.name = client_level: set it to "
                "null, or take privacy=dp_sgd."
            )
        if self.train.packing and (self.model.task != "causal_lm" or self.privacy.name == "dp_sgd"):
            raise ConfigError(
                f"train.packing = True is not possible with model.task = {self.model.task} and privacy.name = "
                f"{self.privacy.name}: it is for language models, and where each example is protected no two may "
                "share a sequence, which would be the unit instead. Set train.packing=false."
            )
        if self.data.label_column is None and self.model.task != "causal_lm":
            raise ConfigError(
                f"data.label_column = None is not possible with model.task = {self.model.task}: name the column of the "
                "classes, or take model.task=causal_lm."
            )
        check_secure(self.privacy, self.train, self.federation)
        check_aggregation(self.aggregation, self.privacy, self.federation)
        needed = self.federation.num_clients * self.partition.min_partition_size
        limit = self.data.max_train_examples
        if limit is not None and limit < needed:
            raise ConfigError(
                f"data.max_train_examples = {limit} is too few for {self.federation.num_clients} clients with at least "
                f"{self.partition.min_partition_size} examples each: give {needed} or more, or lower "
                "federation.num_clients or partition.min_partition_size."
            )

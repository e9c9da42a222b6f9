"""The schema of the configuration: one frozen dataclass per group, with the type and the allowed values of each field.

The values are in ``conf/``, and `fedsvd.config.compose` composes them. pydantic checks each field against its
annotation (`fedsvd.config.group`); ``__post_init__`` checks constraints between fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from fedsvd.config.aggregation import AggregationConfig, check_aggregation
from fedsvd.config.class_weights import check_class_weights
from fedsvd.config.data import DataConfig
from fedsvd.config.device import Device
from fedsvd.config.federation import FederationConfig, check_weighting
from fedsvd.config.group import ConfigGroup
from fedsvd.config.head import check_head
from fedsvd.config.model import ModelConfig
from fedsvd.config.partition import PartitionConfig
from fedsvd.config.privacy import PrivacyConfig
from fedsvd.config.secure_aggregation import check_secure
from fedsvd.config.targets import check_targets
from fedsvd.config.task import ONE_PREDICTION_TASKS
from fedsvd.config.tracking import TrackingConfig
from fedsvd.config.train import TrainConfig
from fedsvd.config.types import Fraction, Seed, Text
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


def _check_has_name(options: Mapping[str, Any]) -> Mapping[str, Any]:
    if "name" not in options:
        raise ValueError("name is missing")
    return options


# The options differ by method: fedsvd.methods checks them.
Method = Annotated[Mapping[str, Any], AfterValidator(_check_has_name), Field(description="a name and its options")]


@dataclass(frozen=True)
class Config(ConfigGroup):
    """The configuration of an experiment.

    Attributes:
        seed: Seed of the initial adapter, the held-out split, the partitions, the clients sampled in each round (except
            with ``privacy=client_level``) and, except with ``privacy=dp_sgd``, the batches. Noise, and what is excepted
            here, is drawn secretly.
        run_dir: Run directory; null: chosen by Hydra, or named after Flower's run id.
        resume: Directory of an earlier run to resume; null starts a new run.
        float32_matmul_precision: Argument of `torch.set_float32_matmul_precision`; below ``highest``, torch may use
            kernels that round inputs (TF32, bfloat16) where the hardware has them.
        plots: Write the plots of the run directory; false saves seconds per run where many small runs are compared.
        reference_accuracy: Held-out accuracy of the same model without privacy, measured elsewhere, or the metric that
            is plotted for its task; shown as a line in the plot. null: no line.
        device: ``auto`` (CUDA if available), ``cpu``, ``cuda`` or ``cuda:N``.
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

    seed: Seed
    run_dir: Text | None
    resume: Text | None
    float32_matmul_precision: Literal["highest", "high", "medium"]
    plots: bool
    device: Device
    method: Method
    model: ModelConfig
    data: DataConfig
    partition: PartitionConfig
    privacy: PrivacyConfig
    train: TrainConfig
    federation: FederationConfig
    aggregation: AggregationConfig
    tracking: TrackingConfig
    reference_accuracy: Fraction | None = None

    def __post_init__(self) -> None:
        _check_client_level(self)
        ranks = self.federation.client_ranks
        if ranks is not None and max(ranks) > self.model.rank:
            raise ConfigError(
                f"federation.client_ranks = {list(ranks)} is not allowed: no client's rank may exceed model.rank = "
                f"{self.model.rank}. Raise model.rank, or lower the clients' ranks."
            )
        if self.train.packing and (self.model.task != "causal_lm" or self.privacy.name == "dp_sgd"):
            raise ConfigError(
                f"train.packing = True is not possible with model.task = {self.model.task} and privacy.name = "
                f"{self.privacy.name}: it is for language models, and example-level privacy would protect a packed "
                "sequence instead of each example in it. Set train.packing=false."
            )
        _check_row_format(self.model, self.data)
        check_targets(self.model, self.data, self.partition)
        _check_public_text(self)
        check_head(self.model, self.data, self.train, self.privacy)
        check_class_weights(self.model, self.data, self.train)
        check_weighting(self.federation, self.privacy, self.train)
        check_secure(self.privacy, self.train, self.federation)
        check_aggregation(self.aggregation, self.privacy, self.federation)
        _check_limit(self)

    @property
    def task(self) -> str:
        """The name of the run's task, a key of `fedsvd.config.task.TASKS`."""
        return self.data.task_name(self.model.task)

    @property
    def public_text_uses(self) -> tuple[str, ...]:
        """What the run computes from ``model.public_text``, in words for people; empty if it does not read it."""
        trains_factors = self.train.rounds > 0 and not self.train.is_head_only
        uses = {
            "standardization of features": self.model.standardize == "public",
            "initial A": self.train.uses_method and self.method.get("init_a") == "public_pca",
            "initial B": self.train.uses_method and self.method.get("init_b") == "public_jacobian",
            "projection of gradients": trains_factors and self.privacy.projects_gradients,
            "preconditioning of A": trains_factors and self.privacy.preconditions_a,
        }
        return tuple(use for use, is_set in uses.items() if is_set)


def _check_limit(config: Config) -> None:
    """Reject fewer training examples than the clients need; nodes have their own, each up to the limit."""
    num_clients, min_size = config.federation.num_clients, config.partition.min_partition_size
    limit = config.data.max_train_examples
    if config.data.name != "node" and limit is not None and limit < num_clients * min_size:
        raise ConfigError(
            f"data.max_train_examples = {limit} is too few for {num_clients} clients with at least {min_size} examples "
            f"each: give {num_clients * min_size} or more, or lower federation.num_clients or "
            "partition.min_partition_size."
        )


def _check_row_format(model: ModelConfig, data: DataConfig) -> None:
    """Reject data without classes for a classifier, and a chat template for text without prompts."""
    key = "messages_column" if data.row_format == "messages" else "label_column"
    if model.task != "causal_lm" and (data.label_column is None or data.row_format == "messages"):
        raise ConfigError(
            f"data.{key} = {getattr(data, key)} is not possible with model.task = {model.task}: name the column of the "
            "classes with data.label_column, or use model.task=causal_lm."
        )
    if model.chat_template and data.row_format == "plain_text":
        raise ConfigError(
            "model.chat_template = True has no effect with data.response_column = None and data.label_column = None: "
            "every token of the text is learned, and there is no prompt. Set model.chat_template=false."
        )


def own_text_problem(config: Config, *own: str | None) -> str:
    """Return what is wrong if a run takes the clients' own data for public text; empty if it does not.

    Args:
        config: The configuration of the run.
        own: The files of the data.
    """
    source = config.model.public_text
    is_own = source == f"embedded:{config.data.name}" or any(path and is_same_file(source, path) for path in own)
    if not (config.public_text_uses and is_own):
        return ""
    return (
        f"model.public_text = {source} is not possible: the clients' own data are the same text. Set it to another "
        "text that is public."
    )


def _check_public_text(config: Config) -> None:
    """Reject private text as public text."""
    if problem := own_text_problem(config, config.data.path, config.data.test_path):
        raise ConfigError(problem)
    if config.privacy.projects_gradients and config.model.task not in ONE_PREDICTION_TASKS:
        raise ConfigError(
            f"privacy.project_public_mean = True is not possible with model.task = {config.model.task}, where a text "
            "does not have one of several classes: set it to false, or use model.task=sequence_classification."
        )


def is_same_file(first: str, second: str) -> bool:
    """Return whether two paths name one file, also by a link or in another notation."""
    try:
        return Path(first).samefile(second)
    except OSError:
        # One of them does not exist on this machine.
        return Path(first).resolve() == Path(second).resolve()


def _check_client_level(config: Config) -> None:
    """Reject keys of ``federation`` that client-level privacy does not support."""
    if config.privacy.name != "client_level":
        return
    defaults = {"min_replies": 1, "min_completion": 0}
    for key, default in defaults.items():
        value = getattr(config.federation, key)
        if value != default:
            raise ConfigError(
                f"federation.{key} = {value} is not allowed with privacy.name = client_level, where every round takes "
                "a noisy step however few clients take part (whether it does must not reveal who did): leave it out."
            )
    ranks = config.federation.client_ranks
    if ranks is not None:
        raise ConfigError(
            f"federation.client_ranks = {list(ranks)} is not possible with privacy.name = client_level: set it to "
            "null, or use privacy=dp_sgd."
        )

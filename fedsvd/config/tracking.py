"""The schema of the group ``tracking``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsvd.config.validate import check_fields


@dataclass(frozen=True)
class TrackingConfig:
    """Who else is told of each round; the run folder always is.

    Attributes:
        name: ``none``, ``tensorboard``, ``wandb`` or ``mlflow``, each by its own library.
        project: Weights & Biases' project, or MLflow's experiment.
        mode: Of ``wandb``: ``online``, or ``offline``: kept in the run folder until ``wandb sync`` is called.
        uri: MLflow's tracking server or store; null: what ``MLFLOW_TRACKING_URI`` says, else ``sqlite:///runs/mlflow.db``.
    """

    name: Literal["none", "tensorboard", "wandb", "mlflow"]
    project: str = "fedsvd"
    mode: Literal["online", "offline"] = "online"
    uri: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "tracking")

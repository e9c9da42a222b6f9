"""The schema of the group ``tracking``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fedsvd.config.group import ConfigGroup
from fedsvd.config.types import Text


@dataclass(frozen=True)
class TrackingConfig(ConfigGroup):
    """The experiment tracker that receives the metrics of each round, in addition to the run directory.

    Attributes:
        name: ``none``, ``tensorboard``, ``wandb`` or ``mlflow``; each except ``none`` needs its library.
        project: Project in Weights & Biases, or experiment in MLflow.
        mode: For ``wandb``: ``online``, or ``offline``, which stores the run in the run directory until ``wandb sync``.
        uri: MLflow's tracking server or store; null: the value of ``MLFLOW_TRACKING_URI`` if set, else
            ``runs/mlruns``.
    """

    group: ClassVar[str] = "tracking"

    name: Literal["none", "tensorboard", "wandb", "mlflow"]
    project: Text = "fedsvd"
    mode: Literal["online", "offline"] = "online"
    uri: Text | None = None

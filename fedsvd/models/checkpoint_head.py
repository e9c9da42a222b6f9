"""The classification head of a checkpoint: its classes, its modules, and a new one in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from fedsvd.models.label_range import Range


@dataclass(frozen=True)
class KeptHead:
    """How a checkpoint's head becomes that of a task.

    Attributes:
        rows: For each class of the task, its number in the checkpoint's head.
        label_range: ``data.label_range``: the head predicts in the units of the labels, which are mapped to 0 … 1 for
            training; None if they are not.
    """

    rows: tuple[int, ...]
    label_range: Range | None = None


def head_classes(architecture: PreTrainedConfig, kind: str = "SequenceClassification") -> tuple[str, ...] | None:
    """Return the names of the classes of a checkpoint's head; None if the checkpoint has no head of this kind."""
    if not any(str(name).endswith(f"For{kind}") for name in architecture.architectures or ()):
        return None
    names: dict[Any, Any] = architecture.id2label or {}
    return tuple(str(names[number]) for number in sorted(names))


def has_head(architecture: PreTrainedConfig) -> bool:
    """Return whether a checkpoint has a head that classifies texts or their tokens."""
    kinds = ("SequenceClassification", "TokenClassification")
    return any(head_classes(architecture, kind) is not None for kind in kinds)


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the modules with parameters outside the model's backbone."""
    prefix = f"{model.base_model_prefix}."
    return sorted({name.rsplit(".", 1)[0] for name, _ in model.named_parameters() if not name.startswith(prefix)})


def whole_heads(model: PreTrainedModel, modules: Sequence[str]) -> list[str]:
    """Return the children of a model that contain the given modules of its head; modules of the backbone are unchanged.

    PEFT wraps a child named ``classifier`` or ``score`` as a whole in any case, and what is wrapped inside a wrapped
    module is not part of the forward pass.
    """
    prefix = f"{model.base_model_prefix}."
    return sorted({name if name.startswith(prefix) else name.split(".")[0] for name in modules})


@torch.no_grad()
def reorder_classes(model: PreTrainedModel, rows: Sequence[int]) -> None:
    """Bring the outputs of a classifier into the order of the task's classes.

    Args:
        model: The classifier.
        rows: For each class of the task, its number in the head.
    """
    heads: list[Any] = [model.get_submodule(name) for name in head_modules(model)]
    output = [head for head in heads if isinstance(head, nn.Linear) and head.out_features == len(rows)][-1]
    for parameter in output.parameters():
        parameter.copy_(parameter[list(rows)].clone())


def renew_head(model: PreTrainedModel) -> tuple[str, ...]:
    """Initialize a classifier's head as transformers initializes parameters that a checkpoint lacks.

    Draws from torch's default generator.

    Returns:
        The names of the parameters.
    """
    modules = [model.get_submodule(name) for name in head_modules(model)]
    new: list[Any] = [item for module in modules for item in (*module.modules(), *module.parameters())]
    for item in (model, *new):
        # The mark of what was loaded; transformers initializes all others.
        item._is_hf_initialized = False
    model.initialize_weights()  # type: ignore[no-untyped-call]
    prefix = f"{model.base_model_prefix}."
    return tuple(sorted(name for name, _ in model.named_parameters() if not name.startswith(prefix)))

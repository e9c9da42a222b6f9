"""Mapping of a regression head's output from 0 … 1, on which it was trained, back to ``data.label_range``.

With a head ``w·f + b``, the prediction is ``low + (high - low)·(w·f + b)``: a head with weight ``(high - low)·w`` and
bias ``(high - low)·b + low``. Exported models have this head, so that other programs need not know the range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.models.output_layer import output_layer

Range = tuple[float, float]


@torch.no_grad()
def rescale_head(model: nn.Module, label_range: Range | None) -> None:
    """Change a model's head, in place, so that it predicts in the original units."""
    if label_range is None:
        return
    layer: Any = model.get_submodule(output_layer(model))
    for name, parameter in layer.named_parameters(recurse=False):
        parameter.copy_(_rescaled(name, parameter, label_range))


def rescale_state(state: Mapping[str, Tensor], model: nn.Module, label_range: Range | None) -> dict[str, Tensor]:
    """Return an adapter's tensors with a head that predicts in the original units.

    Args:
        state: The tensors of PEFT's ``adapter_model.safetensors``.
        model: The base model that the adapter belongs to.
        label_range: ``data.label_range``; None changes nothing.
    """
    if label_range is None:
        return dict(state)
    layer = output_layer(model)
    return {
        name: _rescaled(name.rpartition(".")[2], tensor, label_range) if f".{layer}." in f".{name}" else tensor
        for name, tensor in state.items()
    }


def _rescaled(name: str, tensor: Tensor, label_range: Range) -> Tensor:
    low, high = label_range
    return (high - low) * tensor + (low if name == "bias" else 0.0)

"""Mapping of a regression head's output from 0 … 1, on which it is trained, to ``data.label_range``, and back.

With a head ``w·f + b``, the prediction is ``low + (high - low)·(w·f + b)``: a head with weight ``(high - low)·w`` and
bias ``(high - low)·b + low``. Exported models have this head, so that other programs need not know the range. A run
that starts from such a head needs the one before the mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.models.output_layer import output_layer

Range = tuple[float, float]


def rescale_head(model: nn.Module, label_range: Range | None) -> None:
    """Change the head of a model that predicts 0 … 1, in place, so that it predicts in the original units."""
    _change_output(model, label_range, _rescaled)


def unscale_head(model: nn.Module, label_range: Range | None) -> None:
    """Change the head of a model that predicts in the original units, in place, so that it predicts 0 … 1.

    Args:
        model: The base model. Without a bias in its last layer, the range must start at 0; see
            `fedsvd.models.output_layer.check_output_bias`.
        label_range: ``data.label_range``; None changes nothing.
    """
    _change_output(model, label_range, _unscaled)


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


@torch.no_grad()
def _change_output(model: nn.Module, label_range: Range | None, change: Callable[[str, Tensor, Range], Tensor]) -> None:
    if label_range is None:
        return
    layer: Any = model.get_submodule(output_layer(model))
    for name, parameter in layer.named_parameters(recurse=False):
        # In float32, so that a head in bfloat16 is rounded only once.
        parameter.copy_(change(name, parameter.float(), label_range))


def _rescaled(name: str, tensor: Tensor, label_range: Range) -> Tensor:
    low, high = label_range
    return (high - low) * tensor + (low if name == "bias" else 0.0)


def _unscaled(name: str, tensor: Tensor, label_range: Range) -> Tensor:
    low, high = label_range
    return (tensor - (low if name == "bias" else 0.0)) / (high - low)

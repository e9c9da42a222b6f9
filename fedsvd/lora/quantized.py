"""Frozen linear layers whose weights bitsandbytes stores in 4 or 8 bits (Dettmers et al. 2022, 2023)."""

from __future__ import annotations

from typing import Any

from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type
from torch import Tensor, nn


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer is ``Linear4bit`` or ``Linear8bitLt`` of bitsandbytes."""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, nn.Parameter) and bool(get_bnb_param_type(weight))


def dequantized_weight(layer: Any) -> Tensor:
    """Return the weight that a quantized layer computes with, as a new tensor of shape (d_out, d_in).

    It is float32 for 8 bits; for 4 bits, it has the dtype that the weight had before.
    """
    weight: Tensor = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
    return weight.detach()

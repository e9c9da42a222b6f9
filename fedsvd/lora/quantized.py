"""Frozen linear layers with weights in 4 or 8 bits: of bitsandbytes (Dettmers et al. 2022, 2023) or of torchao."""

from __future__ import annotations

import sys
from typing import Any

from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type
from torch import Tensor, nn


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer is ``Linear4bit`` or ``Linear8bitLt`` of bitsandbytes, or has a weight of torchao."""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, nn.Parameter) and (_is_torchao(weight) or bool(get_bnb_param_type(weight)))


def dequantized_weight(layer: Any) -> Tensor:
    """Return the weight that a quantized layer computes with, as a new tensor of shape (d_out, d_in).

    With bitsandbytes, it is float32 for 8 bits; otherwise, it has the dtype that the weight had before.
    """
    weight: Tensor
    if _is_torchao(layer.weight):
        weight = layer.weight.dequantize()
    else:
        weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
    return weight.detach()


def _is_torchao(tensor: Tensor) -> bool:
    # Importing torchao takes a second, and no tensor is of its type before it is imported.
    module: Any = sys.modules.get("torchao.utils")
    return module is not None and isinstance(tensor, module.TorchAOBaseTensor)

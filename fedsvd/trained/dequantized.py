"""A quantized model as one with plain weights, for exports."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedsvd.lora.quantized import dequantized_weight, is_quantized

# What transformers sets on quantized models, which could neither be converted nor be saved as others can.
_MARKS = ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")
# transformers' conversions of weights between a checkpoint and a model.
_CONVERSIONS = "_weight_conversions"


def dequantize(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replace quantized layers by plain ones that compute with the same weights, in place, and return the model.

    Args:
        model: The model, without adapters.
        dtype: Data type of all weights.
    """
    for name, layer in [*model.named_modules()]:
        if is_quantized(layer):
            model.set_submodule(name, _plain_layer(layer))
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            for mark in _MARKS:
                vars(module).pop(mark, None)
            if conversions := vars(module).get(_CONVERSIONS):
                setattr(module, _CONVERSIONS, [found for found in conversions if _has_reverse(found)])
            vars(module.config).pop("quantization_config", None)
    model.to(dtype)  # type: ignore[arg-type]
    return model


def _has_reverse(conversion: Any) -> bool:
    """Return whether a conversion of weights, made at loading, can be undone at saving; those of torchao cannot."""
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def _plain_layer(quantized: Any) -> nn.Module:
    weight = dequantized_weight(quantized)
    has_bias = quantized.bias is not None
    plain: Any
    # bitsandbytes stores the weights of GPT-2's layers like those of linear layers.
    if getattr(quantized, "source_cls", nn.Linear) is Conv1D:
        plain, weight = Conv1D(len(weight), weight.shape[1]), weight.mT.contiguous()  # type: ignore[no-untyped-call]
    else:
        plain = nn.Linear(weight.shape[1], len(weight), bias=has_bias, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if has_bias:
        plain.bias = nn.Parameter(quantized.bias.detach().to(weight.dtype), requires_grad=False)
    return plain  # type: ignore[no-any-return]

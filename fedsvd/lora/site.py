"""Access to one adapted PEFT layer: its factors, its frozen weight, and whether it computes plain LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from fedsvd.lora.quantized import dequantized_weight, is_quantized

# PEFT's default adapter name.
PEFT_NAME = "default"
# What PEFT puts before the names of the base model's modules in a state dict.
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraSite:
    """One adapted layer.

    Attributes:
        layer: PEFT's layer, which wraps the frozen layer.
        A: Factor A, shape (r, d_in).
        B: Factor B, shape (d_out, r).
        scale: Scale of the product B A.
        not_plain_reason: Why the layer's output is not ``W x + b + scale · B C A x``; None if it is.
        core: C, shape (r, r); None if the site has no core.
    """

    layer: Any
    A: nn.Parameter
    B: nn.Parameter
    scale: float
    not_plain_reason: str | None
    core: nn.Parameter | None = None


class CoreAndB(nn.Linear):
    """PEFT's linear layer for B, preceded by an r × r layer that is initialized to zero.

    Args:
        B: Weight of the layer, shape (d_out, r).
    """

    def __init__(self, B: nn.Parameter) -> None:
        d_out, rank = B.shape
        super().__init__(rank, d_out, bias=False, device="meta")
        self.weight = B
        self.core = nn.Linear(rank, rank, bias=False).to(B)
        nn.init.zeros_(self.core.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``B C x``."""
        return functional.linear(self.core(x), self.weight)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield PEFT's layers around linear layers, which may be quantized, by site name."""
    for name, module in model.named_modules():
        is_linear = isinstance(module, Linear) or (
            isinstance(module, LoraLayer) and is_quantized(module.get_base_layer())
        )
        if is_linear and PEFT_NAME in module.lora_A:
            yield name.removeprefix(PEFT_PREFIX), module


def rescaled_alpha(lora_alpha: float, rank: int, new_rank: int, rslora: bool) -> float:
    """Return the ``lora_alpha`` that keeps the scale of B A when the rank changes."""
    return lora_alpha * math.sqrt(new_rank / rank) if rslora else lora_alpha * new_rank / rank


def describe_site(layer: Any) -> LoraSite:
    """Return the `LoraSite` of a PEFT layer."""
    B = layer.lora_B[PEFT_NAME]
    return LoraSite(
        layer,
        layer.get_parameter(f"lora_A.{PEFT_NAME}.weight"),
        layer.get_parameter(f"lora_B.{PEFT_NAME}.weight"),
        float(layer.scaling[PEFT_NAME]),
        _not_plain_reason(layer),
        layer.get_parameter(f"lora_B.{PEFT_NAME}.core.weight") if isinstance(B, CoreAndB) else None,
    )


def base_weight(layer: Any) -> Tensor:
    """Return the frozen weight of a PEFT layer, shape (d_out, d_in), without copying it unless it is quantized."""
    base = layer.get_base_layer()
    if is_quantized(base):
        return dequantized_weight(base)
    weight: Tensor = base.get_parameter("weight")
    # transformers' Conv1D stores its weight as (d_in, d_out).
    return weight.mT if isinstance(base, Conv1D) else weight


def _not_plain_reason(layer: Any) -> str | None:
    base = layer.get_base_layer()
    if type(base) not in (nn.Linear, Conv1D) and not is_quantized(base):
        return f"is a {type(base).__name__}"
    if not isinstance(layer.lora_dropout[PEFT_NAME], nn.Identity):
        return "has dropout before A"
    if layer.merged or layer.disable_adapters or list(layer.active_adapters) != [PEFT_NAME]:
        return "is merged, or not the only active adapter"
    if PEFT_NAME in layer.lora_variant or layer.lora_bias[PEFT_NAME]:
        return "is a variant of LoRA"
    if any(parameter.requires_grad for parameter in base.parameters()):
        return "has a trained base layer"
    return None

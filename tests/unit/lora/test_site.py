"""What is known of one adapted layer: its factors, core, frozen weight, and whether it computes plain LoRA."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedsvd.lora import peft_model
from fedsvd.lora.quantized import is_quantized
from fedsvd.lora.site import CoreAndB, adapted_layers, base_weight, describe_site, rescaled_alpha


class Layers(nn.Module):
    """A linear layer of each kind that transformers has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.conv = Conv1D(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x) + self.conv(x)
        return result


def adapted(dropout: float = 0.0, **options: Any) -> dict[str, Any]:
    config = peft.LoraConfig(r=2, lora_alpha=6, lora_dropout=dropout, target_modules=["linear", "conv"], **options)
    with peft_model.quiet_peft():
        return dict(adapted_layers(peft.get_peft_model(Layers(), config)))


def test_a_site_has_the_layers_factors_and_scale() -> None:
    layers = adapted()
    assert list(layers) == ["linear", "conv"]
    for layer in layers.values():
        site = describe_site(layer)
        assert site.layer is layer
        assert site.A is layer.lora_A["default"].weight
        assert site.B is layer.lora_B["default"].weight
        assert (site.A.shape, site.B.shape, site.scale) == ((2, 6), (4, 2), 3.0)
        assert site.core is site.not_plain_reason is None


def test_a_core_is_part_of_its_site() -> None:
    layer = adapted()["linear"]
    layer.lora_B["default"] = CoreAndB(layer.lora_B["default"].weight)
    site = describe_site(layer)
    assert site.core is layer.lora_B["default"].core.weight
    assert site.core is not None
    assert site.core.shape == (2, 2)


def test_a_frozen_weight_has_one_row_per_output() -> None:
    for name, layer in adapted().items():
        weight, base = base_weight(layer), layer.get_base_layer()
        assert weight.shape == (4, 6), name
        x = torch.randn(3, 6)
        torch.testing.assert_close(x @ weight.mT + base.bias, base(x))
        assert weight.data_ptr() == base.weight.data_ptr()


def merge(layer: Any) -> None:
    layer.merge()


def disable(layer: Any) -> None:
    layer.enable_adapters(False)


def train_base(layer: Any) -> None:
    layer.get_base_layer().weight.requires_grad_(True)


def subclass(layer: Any) -> None:
    layer.base_layer = type("Special", (nn.Linear,), {})(6, 4).requires_grad_(False)


@pytest.mark.parametrize(
    ("options", "change", "reason"),
    [
        ({"dropout": 0.1}, None, "has dropout before A"),
        ({"use_dora": True}, None, "is a variant of LoRA"),
        ({"lora_bias": True}, None, "is a variant of LoRA"),
        ({}, merge, "is merged, or not the only active adapter"),
        ({}, disable, "is merged, or not the only active adapter"),
        ({}, train_base, "has a trained base layer"),
        ({}, subclass, "is a Special"),
        ({}, None, None),
    ],
)
def test_why_a_layer_is_not_plain(
    options: dict[str, Any], change: Callable[[Any], None] | None, reason: str | None
) -> None:
    layer = adapted(**options)["linear"]
    if change is not None:
        change(layer)
    assert describe_site(layer).not_plain_reason == reason


def test_layers_without_a_weight_are_not_quantized() -> None:
    assert not is_quantized(nn.ReLU())
    assert not is_quantized(nn.Linear(2, 2))


@pytest.mark.parametrize(("rslora", "expected"), [(False, 16.0), (True, 8.0)])
def test_a_rescaled_alpha_keeps_the_scale(rslora: bool, expected: float) -> None:
    alpha = rescaled_alpha(4.0, 2, 8, rslora)
    assert alpha == expected
    scale = (lambda a, r: a / r**0.5) if rslora else (lambda a, r: a / r)
    assert scale(alpha, 8) == scale(4.0, 2)

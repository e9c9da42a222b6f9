"""The frozen weights of adapted layers, and the updates that some methods merge into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedsvd.errors import ModelError
from fedsvd.lora.quantized import is_quantized
from fedsvd.lora.site import PEFT_NAME, adapted_layers, base_weight

# The original weights of layers into which a base has been merged.
_ORIGINAL_WEIGHTS: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


class _FrozenWeights(Mapping[str, Tensor]):
    def __init__(self, layers: Mapping[str, Any]) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> Tensor:
        layer = self._layers[name]
        return _ORIGINAL_WEIGHTS[layer] if layer in _ORIGINAL_WEIGHTS else base_weight(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def frozen_weights(model: nn.Module) -> Mapping[str, Tensor]:
    """Return each site's original weight, shape (d_out, d_in), without a merged base; the tensors are not copies.

    Quantized weights are dequantized whenever they are read, so that only one takes memory at a time.
    """
    return _FrozenWeights(dict(adapted_layers(model)))


def quantized_sites(model: nn.Module) -> list[str]:
    """Return the names of the sites whose frozen weight is quantized: no update can be merged into it."""
    bases = [(name, layer.get_base_layer()) for name, layer in adapted_layers(model)]
    return [name for name, base in bases if is_quantized(base) or not base.weight.is_floating_point()]


def has_merged_base(layers: Iterable[Any]) -> bool:
    """Return whether a base is merged into the frozen weight of one of PEFT's layers."""
    return any(layer in _ORIGINAL_WEIGHTS for layer in layers)


@contextmanager
def without_merged_base(model: nn.Module) -> Iterator[None]:
    """Restore the original weights of the layers into which a base is merged, and merge it again at the end."""
    layers = [layer for _, layer in adapted_layers(model) if layer in _ORIGINAL_WEIGHTS]
    merged = [base_weight(layer).detach().clone() for layer in layers]
    _copy_weights(layers, [_ORIGINAL_WEIGHTS[layer] for layer in layers])
    try:
        yield
    finally:
        _copy_weights(layers, merged)


@torch.no_grad()
def _copy_weights(layers: Sequence[Any], weights: Sequence[Tensor]) -> None:
    for layer, weight in zip(layers, weights, strict=True):
        base_weight(layer).copy_(weight)


@torch.no_grad()
def merge_base(model: nn.Module, left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """Set each site's frozen weight to the original plus the scaled product of two factors, or to the original.

    Raises:
        ModelError: A weight is quantized, and there is something to merge into it.
    """
    for name, layer in adapted_layers(model):
        _merge_base(name, layer, left.get(name), right.get(name))


def _merge_base(name: str, layer: Any, left: Tensor | None, right: Tensor | None) -> None:
    if left is None or right is None:
        if layer in _ORIGINAL_WEIGHTS:
            base_weight(layer).copy_(_ORIGINAL_WEIGHTS.pop(layer))
        return
    if is_quantized(layer.get_base_layer()):
        raise ModelError(
            f"{name} has a quantized weight, which would round a merged update away: load the model without "
            "quantization."
        )
    weight = base_weight(layer)
    original = _ORIGINAL_WEIGHTS.setdefault(layer, weight.clone())
    weight.copy_(torch.addmm(original, left.to(original), right.to(original), alpha=layer.scaling[PEFT_NAME]))

"""Cached products of frozen weights with cached states; see `fedsvd.training.prefix_cache`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedsvd.lora.frozen_weights import frozen_weights
from fedsvd.lora.peft_model import lora_sites
from fedsvd.lora.quantized import is_quantized


@dataclass
class FrozenLinear:
    """A frozen linear layer whose input is cached.

    Attributes:
        module: The layer.
        source: Index of its input among the cached tensors.
        weight: The weight of the cached products. Methods that merge factors into frozen weights change the layer's own
            weight temporarily; meanwhile, the layer computes its output itself.
    """

    module: nn.Linear
    source: int
    weight: Tensor
    _compared: tuple[int, int] | None = None
    _is_unchanged: bool = False

    @property
    def is_unchanged(self) -> bool:
        """Whether the layer has the weight of the cached products."""
        weight = self.module.weight
        # Compared when it has been written only: on a GPU, a comparison waits for all that has been started.
        version = (weight.data_ptr(), weight._version)
        if version != self._compared:
            self._compared, self._is_unchanged = version, torch.equal(weight, self.weight)
        return self._is_unchanged

    def product(self, states: Tensor) -> Tensor:
        """Return the layer's output for its input ``states``, shape (…, d_out)."""
        bias = self.module.bias
        return nn.functional.linear(states, self.weight, None if bias is None else bias.detach())


def loaded_weights(layer: nn.Module, linears: Sequence[nn.Linear]) -> list[Tensor]:
    """Return the frozen weights of linear layers inside an adapted layer as loaded, without merged factors."""
    weights = frozen_weights(layer)
    names = {site.layer.get_base_layer(): name for name, site in lora_sites(layer).items()}
    return [(weights[names[module]] if module in names else module.weight).detach() for module in linears]


@contextmanager
def collect_linears(layer: nn.Module, inputs: Sequence[Tensor]) -> Iterator[list[tuple[nn.Linear, int]]]:
    """Collect the linear layers of the base model that are called with one of ``inputs``, and its index."""
    linears: list[tuple[nn.Linear, int]] = []

    def collect(module: nn.Module, args: tuple[object, ...]) -> None:
        known = any(module is linear for linear, _ in linears)
        found = [index for index, states in enumerate(inputs) if args and _is_same(args[0], states)]
        if found and not known and isinstance(module, nn.Linear):
            linears.append((module, found[0]))

    # Factors are excluded even if frozen in this round, since another round may train them.
    factors = {id(factor) for site in lora_sites(layer).values() for factor in (site.A, site.B, site.core)}
    linear = [m for m in layer.modules() if type(m) is nn.Linear and not is_quantized(m)]
    base = [m for m in linear if id(m.weight) not in factors]
    hooks = [module.register_forward_pre_hook(collect) for module in base]
    try:
        yield linears
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def use_products(
    linears: Sequence[FrozenLinear], inputs: Sequence[Tensor], products: Sequence[Tensor]
) -> Iterator[None]:
    """Make layers return cached products when they are called with their cached input, inside the context."""
    pairs = zip(linears, products, strict=True)
    unchanged = [(linear, product) for linear, product in pairs if linear.is_unchanged]

    def forward(linear: FrozenLinear, product: Tensor, x: Tensor) -> Tensor:
        if not _is_same(x, inputs[linear.source]):
            return nn.functional.linear(x, linear.module.weight, linear.module.bias)
        # Return a copy, so that in-place operations on the output do not affect a second call.
        return product.clone()

    for linear, product in unchanged:
        linear.module.forward = partial(forward, linear, product)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear, _ in unchanged:
            del linear.module.forward


def _is_same(x: object, states: Tensor) -> bool:
    """Return whether ``x`` shares its storage with ``states``; autograd may pass another tensor object."""
    return isinstance(x, Tensor) and x.data_ptr() == states.data_ptr() and x.shape == states.shape

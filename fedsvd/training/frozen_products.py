"""Frozen products that are kept with the states they are made of: see `fedsvd.training.prefix_cache`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedsvd.lora.peft_model import frozen_weights, lora_sites


@dataclass(frozen=True)
class FrozenLinear:
    """A frozen linear layer that reads the kept states themselves.

    Attributes:
        module: The layer.
        weight: What kept products are made with. Methods that merge factors into frozen weights change the layer's own
            for a while; then it computes for itself.
    """

    module: nn.Linear
    weight: Tensor

    def product(self, states: Tensor) -> Tensor:
        """Return what the layer makes of states, shape (…, d_out)."""
        bias = self.module.bias
        return nn.functional.linear(states, self.weight, None if bias is None else bias.detach())


def loaded_weights(layer: nn.Module, found: Sequence[nn.Linear]) -> list[Tensor]:
    """Return the frozen weights of parts of an adapted layer as they were loaded, whatever is merged into them now."""
    weights = frozen_weights(layer)
    merging = {site.layer.get_base_layer(): weights[name] for name, site in lora_sites(layer).items()}
    return [merging.get(module, module.weight).detach() for module in found]


@contextmanager
def collect_linears(layer: nn.Module, states: Tensor) -> Iterator[list[nn.Linear]]:
    """Within, collect the linear layers of the base model that are called with these very states."""
    found: list[nn.Linear] = []

    def listen(module: nn.Module, args: tuple[object, ...]) -> None:
        if args and _same(args[0], states) and isinstance(module, nn.Linear) and module not in found:
            found.append(module)

    # What is trained in one round may stand still in this one: a factor is nothing to keep products of.
    factors = {id(factor) for site in lora_sites(layer).values() for factor in (site.A, site.B, site.core)}
    base = [m for m in layer.modules() if type(m) is nn.Linear and id(m.weight) not in factors]
    hooks = [module.register_forward_pre_hook(listen) for module in base]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def use_products(readers: Sequence[FrozenLinear], states: Tensor, products: Sequence[Tensor]) -> Iterator[None]:
    """Within, layers that are called with these very states return what was kept."""
    pairs = zip(readers, products, strict=True)
    able = [(reader, product) for reader, product in pairs if torch.equal(reader.module.weight, reader.weight)]

    def answer(reader: FrozenLinear, product: Tensor, x: Tensor) -> Tensor:
        if not _same(x, states):
            return nn.functional.linear(x, reader.module.weight, reader.module.bias)
        # A copy: what is done in place to a layer's output must not reach a second call.
        return product.clone()

    for reader, product in able:
        reader.module.forward = partial(answer, reader, product)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for reader, _ in able:
            del reader.module.forward


def _same(x: object, states: Tensor) -> bool:
    """Whether a layer's input is the states, not merely equal to them; autograd may wrap them anew."""
    return isinstance(x, Tensor) and x.data_ptr() == states.data_ptr() and x.shape == states.shape

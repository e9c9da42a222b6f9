"""What lies below the lowest adapted layer never changes: its output is computed once for each example, and kept.

With factors in the top layers only (``model.lora_layers=top_K``), an example's hidden states at the lowest adapted
layer depend on nothing that is trained. They are kept on the CPU without padding, and the layers below return them
instead of computing. transformers' own forward makes masks and everything above. An architecture that this does not fit
is found out by comparing one forward pass with and without, and goes without.

Where the last layer alone is adapted, most of what is left to do are its frozen products with these states (of keys,
queries and values in attention). They are kept, too.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.lora.peft_model import lora_sites
from fedsvd.training.frozen_products import FrozenLinear, use_products, collect_linears, loaded_weights

logger = logging.getLogger(__name__)
_TOLERANCE = 1e-3


class MemoryBudget:
    """Bytes that all caches of a process share.

    Args:
        limit_bytes: 0 keeps nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, size: int) -> bool:
        """Take so many bytes if they are left."""
        fits = self.used_bytes + size <= self.limit_bytes
        self.used_bytes += size if fits else 0
        return fits

    def give_back(self, taken: list[int]) -> None:
        """Return what a cache that is gone had taken."""
        self.used_bytes -= sum(taken)


class StateStore:
    """Kept states of examples, by their tokens; for all models that are the same below their lowest adapted layer.

    Args:
        budget: Memory to use; what does not fit is computed each time.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.states: dict[bytes, Tensor] = {}
        self._weights: list[Tensor] | None = None
        self._taken: list[int] = []
        weakref.finalize(self, budget.give_back, self._taken)

    def keep(self, key: bytes, state: Tensor) -> None:
        """Keep one example's states, shape (tokens, d), where there is room."""
        size = state.numel() * state.element_size()
        if self.budget.take(size):
            self._taken.append(size)
            self.states[key] = state

    def product_weights(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what all products kept here are made with: copies of the weights of the first model that asks."""
        if self._weights is None:
            self._weights = [weight.clone() for weight in weights]
        return self._weights


class PrefixCache:
    """The kept states of examples under one model.

    Args:
        model: The adapted model; its parameters may change, what lies below its lowest adapted layer may not.
        store: Where states are kept. Another model may share it if it is the same below its lowest adapted layer, and
            in that layer's biases; a part of that layer whose frozen weight is another computes for itself.
    """

    def __init__(self, model: nn.Module, store: StateStore) -> None:
        self._layers, last = _layers_below(model) if store.budget.limit_bytes else ([], False)
        self._keeps_products = last
        self._readers: list[FrozenLinear] = []
        self._store = store
        self._returns_tuple = False
        self._tested = False

    def __len__(self) -> int:
        """How many examples' states are kept."""
        return len(self._store.states)

    @contextmanager
    def reuse_states(self, model: nn.Module, inputs: dict[str, Tensor]) -> Iterator[None]:
        """Within, a forward pass of ``model`` over these inputs starts at the lowest adapted layer.

        Args:
            model: The model (or a wrapper around it).
            inputs: What the forward pass will be called with; ``attention_mask`` of shape (batch, length) says where
                each example's tokens are.
        """
        if not self._layers or not self._fits(model, inputs):
            yield
            return
        mask = inputs["attention_mask"].bool()
        kept = self._gather(model, inputs, mask)
        widths = [reader.weight.shape[0] for reader in self._readers]
        parts = torch.split(kept, [kept.shape[-1] - sum(widths), *widths], dim=-1)
        states, *products = [part.contiguous() for part in parts]
        with (
            _passing(self._layers[:-1], states, self._returns_tuple),
            use_products(self._readers, states, products),
        ):
            yield

    def _gather(self, model: nn.Module, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
        keys = _keys(inputs, mask)
        rows = [self._store.states.get(key) for key in keys]
        missing = {key: row for row, key in enumerate(keys) if rows[row] is None}
        fresh: dict[bytes, Tensor] = {}
        if missing:
            chosen = list(missing.values())
            below = self._below(model, {name: tensor[chosen] for name, tensor in inputs.items()})
            below = torch.cat([below, *(reader.product(below) for reader in self._readers)], dim=-1)
            for (key, row), state in zip(missing.items(), below, strict=True):
                fresh[key] = state[mask[row]].cpu()
                self._store.keep(key, fresh[key])
        found = [fresh[key] if state is None else state for key, state in zip(keys, rows, strict=True)]
        padded = found[0].new_zeros(*mask.shape, found[0].shape[-1])
        padded[mask.cpu()] = torch.cat(found)
        return padded.to(mask.device)

    @torch.no_grad()
    def _below(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Run up to the lowest adapted layer, and no further."""

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _ReachedError(args[0] if args else kwargs["hidden_states"])

        with self._layers[-1].register_forward_pre_hook(stop, with_kwargs=True, prepend=True):
            try:
                model(**inputs)
            except _ReachedError as reached:
                return reached.states
        raise RuntimeError("the lowest adapted layer was not reached")

    def _fits(self, model: nn.Module, inputs: dict[str, Tensor]) -> bool:
        """Compare a pass with and without, once; where they differ, say so and go without from then on."""
        if self._tested:
            return True
        self._tested = True
        reason = self._difference(model, {name: tensor[:2] for name, tensor in inputs.items()})
        if reason:
            logger.warning("frozen layers are computed anew for each batch: %s.", reason)
            self._layers = []
        return not reason

    @torch.no_grad()
    def _difference(self, model: nn.Module, inputs: dict[str, Tensor]) -> str | None:
        mask = inputs.get("attention_mask")
        if mask is None or mask.dim() != 2:
            return "the model is called without a mask of shape (batch, length)"
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            return "texts are padded on the left"
        seen: list[Any] = []
        with self._layers[0].register_forward_hook(lambda module, args, output: seen.append(output)):
            expected = model(**inputs).logits
        self._returns_tuple = bool(seen) and isinstance(seen[0], tuple)
        states = self._below(model, inputs)
        if states.dim() != 3 or states.shape[:2] != mask.shape:
            return f"its layers read states of shape {tuple(states.shape)}"
        # Padding is lost when states are kept, and must not matter.
        states = torch.where(mask.bool().unsqueeze(-1), states, torch.zeros_like(states))
        with (
            _passing(self._layers[:-1], states, self._returns_tuple),
            collect_linears(self._layers[-1], states) as readers,
        ):
            found = model(**inputs).logits
        if self._keeps_products:
            weights = self._store.product_weights(loaded_weights(self._layers[-1], readers))
            pairs = zip(readers, weights, strict=True)
            self._readers = [FrozenLinear(module, weight.to(module.weight.device)) for module, weight in pairs]
        if expected.dim() == 3:
            # A language model's, at each token.
            expected, found = expected[mask.bool()], found[mask.bool()]
        scale = expected.abs().max().clamp(min=1e-6)
        return None if (found - expected).abs().max() <= _TOLERANCE * scale else "handing states in changes its output"


def _keys(inputs: dict[str, Tensor], mask: Tensor) -> list[bytes]:
    """Return what each example's states depend on: its tokens, with their types and positions where they are given."""
    names = sorted(inputs.keys() - {"attention_mask"})
    columns, within = [inputs[name].cpu().numpy() for name in names], mask.cpu().numpy()
    start = ",".join(names).encode()
    return [b"".join([start, *(column[row][kept].tobytes() for column in columns)]) for row, kept in enumerate(within)]


class _ReachedError(Exception):
    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _layers_below(model: nn.Module) -> tuple[list[nn.Module], bool]:
    """Return the layers up to the lowest adapted one (none where none lies below it), and whether it is the last."""
    sites = {id(site.layer) for site in lora_sites(model).values()}
    for stack in model.modules():
        if not isinstance(stack, nn.ModuleList) or not sites:
            continue
        held = [any(id(module) in sites for module in layer.modules()) for layer in stack]
        everywhere = sum(id(module) in sites for layer in stack for module in layer.modules())
        if everywhere == len(sites):
            lowest = held.index(True)
            return (list(stack[: lowest + 1]) if lowest else []), lowest == len(stack) - 1
    return [], False


@contextmanager
def _passing(layers: Sequence[nn.Module], states: Tensor, returns_tuple: bool) -> Iterator[None]:
    """Let layers compute nothing, and the last of them return kept states.

    They are its output rather than put in where the next layer reads, so that a backward pass that computes that layer
    again (gradient checkpointing) reads them too.
    """

    def let_pass(*args: Any, **kwargs: Any) -> Any:
        return (states,) if returns_tuple else states

    for layer in layers:
        layer.forward = let_pass
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward

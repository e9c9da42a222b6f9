"""A cache for the output of the frozen layers below the lowest adapted layer, computed once per example.

With factors in the top layers only (``model.lora_layers=top_K``), an example's hidden states at the lowest adapted
layer do not depend on any trained parameter. They are cached without padding, on the GPU while they fit and on the CPU
otherwise, and the embeddings and the layers below return them instead of computing. The forward pass of transformers
still builds the masks and runs everything above. The first use compares one forward pass on made-up texts with and
without the cache; if the outputs differ, the architecture is not supported and the cache is disabled. A batch without a
mask of its tokens (packed sequences) or with padding on the left is computed in full.

If only the last layer is adapted, most of the remaining work is in its frozen weights. The outputs of its parts before
the first site (`fedsvd.training.frozen_children`), and the products of frozen weights with what is cached (such as
keys, queries and values), are cached as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.lora.peft_model import lora_sites
from fedsvd.training.frozen_children import FrozenPart, digest_of, record_children, record_source, use_outputs
from fedsvd.training.frozen_products import FrozenLinear, collect_linears, loaded_weights, use_products
from fedsvd.training.probe_texts import probe_texts
from fedsvd.training.state_store import StateStore, padded

logger = logging.getLogger(__name__)
_TOLERANCE = 1e-3


class PrefixCache:
    """The cached states of one model's examples.

    Args:
        model: The adapted model. Its parameters may change, except those below its lowest adapted layer.
        store: Holds the states. Another model may share it if it is identical below its lowest adapted layer and in
            that layer's biases. A part of that layer with a different frozen weight computes its own products.
    """

    def __init__(self, model: nn.Module, store: StateStore) -> None:
        self._layers, only_last_adapted = _layers_below(model) if store.budget.limit_bytes else ([], False)
        self._caches_products = only_last_adapted
        # The layers below, and the embeddings if they can be skipped, too. All return the cached states.
        self._skipped: list[FrozenPart] = []
        self._children: list[FrozenPart] = []
        self._linears: list[FrozenLinear] = []
        self._widths: list[int] = []
        self._store = store
        self._checked = False
        self._warned: set[str] = set()

    def __len__(self) -> int:
        """Return the number of examples with cached states."""
        return len(self._store.states)

    @contextmanager
    def reuse_states(
        self, model: nn.Module, inputs: dict[str, Tensor], on_cpu: dict[str, Tensor] | None = None
    ) -> Iterator[None]:
        """Start forward passes of ``model`` on ``inputs`` at the lowest adapted layer, inside the context.

        Args:
            model: The model (or a wrapper around it).
            inputs: Keyword arguments of the forward pass; ``attention_mask``, shape (batch, length), marks the tokens
                of each example. Without it, as for packed sequences, nothing is reused.
            on_cpu: The same inputs on the CPU; see `fedsvd.training.loop.StateCache`.
        """
        if not self._layers or not self._fits(on_cpu or inputs) or not self._is_supported(model, inputs):
            yield
            return
        cached = self._gather(model, inputs, on_cpu or inputs)
        with self._use([part.contiguous() for part in torch.split(cached, self._widths, dim=-1)]):
            yield

    @contextmanager
    def _use(self, parts: Sequence[Tensor]) -> Iterator[None]:
        """Bypass what is cached: states, outputs of the children, and products, shape (batch, length, d) each."""
        sources, products = parts[: 1 + len(self._children)], parts[1 + len(self._children) :]
        with (
            # Detached: with gradient checkpointing, a hook makes the output of the embeddings require a gradient.
            use_outputs(self._skipped, [sources[0].detach() for _ in self._skipped]),
            use_outputs(self._children, sources[1:]),
            use_products(self._linears, sources, products),
        ):
            yield

    def _gather(self, model: nn.Module, inputs: dict[str, Tensor], on_cpu: dict[str, Tensor]) -> Tensor:
        """Return states and products of a batch, padded, shape (batch, length, d); compute those not cached yet."""
        device, mask = inputs["attention_mask"].device, on_cpu["attention_mask"].bool()
        keys = example_keys(on_cpu, mask)
        rows = [self._store.states.get(key) for key in keys]
        missing = {key: row for row, key in enumerate(keys) if rows[row] is None}
        computed: dict[bytes, Tensor] = {}
        if missing:
            missing_rows = list(missing.values())
            sources = self._compute(model, {name: tensor[missing_rows] for name, tensor in inputs.items()})
            states = torch.cat(
                [*sources, *(linear.product(sources[linear.source]) for linear in self._linears)], dim=-1
            )
            tokens = mask[missing_rows]
            parts = torch.split(self._store.place(states[tokens.to(device)]), tokens.sum(dim=1).tolist())
            computed = {key: state.clone() for key, state in zip(missing, parts, strict=True)}
            for key, state in computed.items():
                self._store.add(key, state)
        unpadded = [computed[key] if state is None else state for key, state in zip(keys, rows, strict=True)]
        return padded(unpadded, mask, device)

    @torch.no_grad()
    def _compute(self, model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Run the forward pass up to the first site; return the input of its layer and the outputs of the children."""
        states: list[Tensor] = []

        def read_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0] if args else kwargs["hidden_states"])
            if not self._children:
                raise _ReachedError

        layer = self._layers[-1]
        with (
            layer.register_forward_pre_hook(read_input, with_kwargs=True),
            record_children(layer, _ReachedError) as called,
            suppress(_ReachedError),
        ):
            model(**inputs)
        return [states[0], *called.outputs[: len(self._children)]]

    def _fits(self, inputs: dict[str, Tensor]) -> bool:
        """Return whether the texts of a batch can be recognized; if not, warn once."""
        reason = unrecognized_reason(inputs)
        if reason and reason not in self._warned:
            self._warned.add(reason)
            logger.warning("frozen layers are recomputed for batches %s.", reason)
        return reason is None

    def _is_supported(self, model: nn.Module, inputs: dict[str, Tensor]) -> bool:
        """Compare one forward pass with and without the cache; if they differ, warn and disable the cache."""
        if self._checked:
            return True
        reason = self._unsupported_reason(model, probe_texts(model, inputs))
        # Not before: the check can run out of memory, and is repeated then.
        self._checked = True
        if reason:
            logger.warning("frozen layers are recomputed for each batch: %s.", reason)
            self._layers = []
        return not reason

    @torch.no_grad()
    def _unsupported_reason(self, model: nn.Module, inputs: dict[str, Tensor]) -> str | None:
        """Return why the cache does not support the model, or None after recording what it needs to know of it."""
        outputs: list[Any] = []
        mask, layer = inputs["attention_mask"], self._layers[-1]
        with (
            self._layers[0].register_forward_hook(lambda module, args, output: outputs.append(output)),
            record_children(layer) as called,
            record_source(model, self._layers[0]) as embeddings,
        ):
            expected = model(**inputs).logits
        tuple_length = int(bool(outputs) and isinstance(outputs[0], tuple))
        below = [FrozenPart(lower, tuple_length) for lower in self._layers[:-1]]
        children = called.children if self._caches_products else []
        self._children = children
        sources = self._compute(model, inputs)
        if sources[0].dim() != 3 or any(states.shape[:2] != mask.shape for states in sources):
            return f"the layers take states of shape {tuple(sources[0].shape)}, expected (batch, length, d)"
        for self._skipped, self._children in product(([*embeddings, *below], below), (children, [])):
            if self._matches(model, inputs, sources[: 1 + len(self._children)], expected):
                return None
        return "cached states change the model's output"

    def _matches(self, model: nn.Module, inputs: dict[str, Tensor], sources: list[Tensor], expected: Tensor) -> bool:
        """Return whether the logits stay the same with cached sources; then record what to cache with them."""
        mask, layer = inputs["attention_mask"].bool(), self._layers[-1]
        # States at padding are not cached, so they must not change the output.
        unpadded = [torch.where(mask.unsqueeze(-1), states, torch.zeros_like(states)) for states in sources]
        self._linears = []
        with self._use(unpadded), collect_linears(layer, unpadded) as called:
            actual = model(**inputs).logits
        if expected.dim() == 3:
            # Logits of a language model: compare them at tokens, not at padding.
            expected, actual = expected[mask], actual[mask]
        if (actual - expected).abs().max() > _TOLERANCE * expected.abs().max().clamp(min=1e-6):
            return False
        self._store = self._store.part(digest_of(layer, self._children))
        if self._caches_products:
            weights = self._store.product_weights(loaded_weights(layer, [module for module, _ in called]))
            self._linears = [
                FrozenLinear(module, source, weight.to(module.weight.device))
                for (module, source), weight in zip(called, weights, strict=True)
            ]
        self._widths = [states.shape[-1] for states in sources]
        self._widths += [linear.weight.shape[0] for linear in self._linears]
        return True


def unrecognized_reason(inputs: dict[str, Tensor]) -> str | None:
    """Return why `example_keys` does not tell what is computed for the texts of a batch, or None if it does."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return "without a mask of shape (batch, length), such as packed sequences"
    if bool((mask[:, 1:] > mask[:, :-1]).any()):
        # The positions of a text's tokens would depend on its padding.
        return "of texts that are padded on the left"
    return None


def example_keys(inputs: dict[str, Tensor], mask: Tensor) -> list[bytes]:
    """Return a key per example: the bytes of its tokens and, where given, of their types and positions."""
    names = sorted(inputs.keys() - {"attention_mask"})
    columns = [inputs[name].cpu().numpy() for name in names]
    prefix = ",".join(names).encode()
    return [
        b"".join([prefix, *(column[row][is_token].tobytes() for column in columns)])
        for row, is_token in enumerate(mask.cpu().numpy())
    ]


class _ReachedError(Exception):
    """The forward pass has reached the first site."""


def _layers_below(model: nn.Module) -> tuple[list[nn.Module], bool]:
    """Return the layers up to the lowest adapted one ([] if none is below it), and whether that one is the last."""
    sites = {id(site.layer) for site in lora_sites(model).values()}
    for stack in model.modules():
        if not isinstance(stack, nn.ModuleList) or not sites:
            continue
        is_adapted = [any(id(module) in sites for module in layer.modules()) for layer in stack]
        sites_in_stack = sum(id(module) in sites for layer in stack for module in layer.modules())
        if sites_in_stack == len(sites):
            lowest = is_adapted.index(True)
            return (list(stack[: lowest + 1]) if lowest else []), lowest == len(stack) - 1
    return [], False

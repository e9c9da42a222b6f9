"""A cache for the features of a `PooledClassifier` while nothing below its head is trained.

A run that trains the head alone reads the same features of the same texts in every step: one vector per text. They are
computed once, and from then on the model consists of its head. This holds as long as the LoRA factors do not change;
otherwise the `PrefixCache` is used.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from fedsvd.data.batches import padded_width
from fedsvd.lora.frozen_weights import has_merged_base
from fedsvd.lora.peft_model import lora_sites
from fedsvd.lora.site import LoraSite
from fedsvd.models.pooled import PooledClassifier
from fedsvd.training.prefix_cache import PrefixCache, example_keys, unrecognized_reason
from fedsvd.training.state_store import MemoryBudget, Reservation

# A head alone can be trained on batches of all texts; the layers below it would need too much memory for them.
_BATCH_SIZE = 64
# The digest of sites none of which changes the frozen model's output.
_WITHOUT_FACTORS = hashlib.sha256().digest()


class FeatureStore:
    """Cached features of texts, for one state of the factors.

    Args:
        budget: The memory limit; features that do not fit are recomputed each time.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._state = b""
        self._features: dict[bytes, Tensor] = {}
        self._reserved: list[Reservation] = []
        weakref.finalize(self, budget.release, self._reserved)

    def __len__(self) -> int:
        return len(self._features)

    def for_state(self, state: bytes) -> dict[bytes, Tensor]:
        """Return the features of texts under a state of the factors, after deleting those of another state."""
        if state != self._state:
            self._budget.release(self._reserved)
            self._state, self._features = state, {}
        return self._features

    def add(self, key: bytes, features: Tensor) -> None:
        """Cache one text's features, shape (d,), if the budget allows."""
        if self._budget.reserve(features, self._reserved):
            self._features[key] = features


class FeatureCache:
    """The cached features of one model's texts; the same interface as `PrefixCache`.

    Args:
        model: The adapted model.
        pooled: The `PooledClassifier` in it.
        prefix: For forward passes through layers with trained factors.
        store: Holds the features. Models with the same frozen weights can share it.
        fill_prefix: Cache the states of the frozen layers with the features, for later rounds that train factors.
    """

    def __init__(
        self,
        model: nn.Module,
        pooled: PooledClassifier,
        prefix: PrefixCache,
        store: FeatureStore,
        fill_prefix: bool = False,
    ) -> None:
        self._pooled = pooled
        self._prefix = prefix
        self._store = store
        self._fill_prefix = fill_prefix
        self._sites = list(lora_sites(model).values())
        self._model = model
        self._versions: tuple[object, ...] = ()
        self._state = b""

    def __len__(self) -> int:
        """Return the number of texts with cached features or states."""
        return len(self._store) + len(self._prefix)

    @contextmanager
    def reuse_states(
        self, model: nn.Module, inputs: dict[str, Tensor], on_cpu: dict[str, Tensor] | None = None
    ) -> Iterator[None]:
        """Start forward passes of ``model`` on ``inputs`` at the head, or as `PrefixCache.reuse_states`.

        Args:
            model: The model (or a wrapper around it).
            inputs: Keyword arguments of the forward pass.
            on_cpu: The same inputs on the CPU; see `fedsvd.training.loop.StateCache`.
        """
        state = self._factor_state() if unrecognized_reason(on_cpu or inputs) is None else None
        if state is None or not self._is_constant(state):
            with self._prefix.reuse_states(model, inputs, on_cpu):
                yield
            return
        features = self._gather(inputs, on_cpu or inputs, state)

        def return_features(**_: Tensor) -> Tensor:
            return features

        self._pooled.features = return_features  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del self._pooled.features

    def _gather(self, inputs: dict[str, Tensor], on_cpu: dict[str, Tensor], state: bytes) -> Tensor:
        """Return the features of a batch, shape (batch, d); compute those not cached yet."""
        mask = on_cpu["attention_mask"].bool()
        keys = example_keys(on_cpu, mask)
        cached = self._store.for_state(state)
        missing = {key: row for row, key in enumerate(keys) if key not in cached}
        computed = self._compute(inputs, mask, missing)
        for key, features in computed.items():
            self._store.add(key, features)
        gathered = torch.stack([computed[key] if key in computed else cached[key] for key in keys])
        return gathered.to(inputs["attention_mask"].device, non_blocking=True)

    @torch.no_grad()
    def _compute(self, inputs: dict[str, Tensor], mask: Tensor, rows: dict[bytes, int]) -> dict[bytes, Tensor]:
        """Return the features of some rows of a batch, in small batches of texts of similar length."""
        lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).tolist()
        ordered = sorted(rows.items(), key=lambda item: lengths[item[1]])
        computed = {}
        for start in range(0, len(ordered), _BATCH_SIZE):
            keys, indices = zip(*ordered[start : start + _BATCH_SIZE], strict=True)
            # Not less: padding must not depend on the other texts.
            width = padded_width(lengths[indices[-1]], mask.shape[1])
            batch = {name: tensor[list(indices), :width] for name, tensor in inputs.items()}
            with self._prefix.reuse_states(self._model, batch) if self._fill_prefix else nullcontext():
                features = self._pooled.features(**batch).cpu()
            for key, row in zip(keys, features, strict=True):
                computed[key] = row.clone()
        return computed

    def _is_constant(self, state: bytes) -> bool:
        """Return whether the features are worth caching, and no gradient flows through them."""
        parameters = (p for site in self._sites for p in (site.A, site.B, site.core) if p is not None)
        if not any(parameter.requires_grad for parameter in parameters):
            return True
        # Trained factors change every round, except in an evaluation before they first do.
        return state == _WITHOUT_FACTORS and not torch.is_grad_enabled()

    def _factor_state(self) -> bytes | None:
        """Return a digest of what the sites add to the frozen model, or None if frozen weights are modified."""
        if has_merged_base(site.layer for site in self._sites):
            return None
        tensors = [(site.A, site.B, site.core, site.layer.disable_adapters) for site in self._sites]
        versions = tuple((_version(A), _version(B), _version(core), off) for A, B, core, off in tensors)
        if versions != self._versions:
            self._state = _digest(self._sites)
            self._versions = versions
        return self._state


def _version(parameter: Tensor | None) -> tuple[int, int] | None:
    return None if parameter is None else (parameter.data_ptr(), parameter._version)


def _digest(sites: list[LoraSite]) -> bytes:
    digest = hashlib.sha256()
    for number, site in enumerate(sites):
        factors = [site.B] if site.core is None else [site.B, site.core]
        # The product is zero if one of its factors is: A does not matter then.
        if site.layer.disable_adapters or any(not factor.any() for factor in factors):
            continue
        digest.update(number.to_bytes(4, "big"))
        for factor in (site.A, *factors):
            digest.update(factor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()

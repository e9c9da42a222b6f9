"""The losses of single examples, with batches that are collated on a thread of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from fedsvd.training.loop import Batch, StateCache, model_inputs, to_device
from fedsvd.training.objectives import Objective

# The physical batch that is computed, and the one after it.
_BATCHES_AHEAD = 2


class ExampleLosses:
    """Function from a model and the positions of examples to the loss of each example, shape (batch,).

    Args:
        collate: Function from the positions of examples to a padded batch on the CPU.
        device: The device of the model.
        cache: The cache of the model's frozen layers.
        objective: The objective of the task.
    """

    def __init__(
        self,
        collate: Callable[[tuple[int, ...]], Batch],
        device: torch.device,
        cache: StateCache,
        objective: Objective,
    ) -> None:
        self._collate = collate
        self._device = device
        self._cache = cache
        self._objective = objective
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fedsvd-collate")
        self._ahead: dict[tuple[int, ...], Future[Batch]] = {}

    def prepare(self, positions: Sequence[int]) -> None:
        """Start to collate a physical batch that will probably be needed next."""
        key = tuple(positions)
        if key in self._ahead:
            return
        while len(self._ahead) >= _BATCHES_AHEAD:
            # A batch that did not fit into memory was split, so that it was never needed.
            self._ahead.pop(next(iter(self._ahead))).cancel()
        self._ahead[key] = self._thread.submit(self._collated, key)

    def __call__(self, model: nn.Module, positions: Sequence[int]) -> Tensor:
        """Return the losses; a batch that was not prepared is collated now."""
        key = tuple(positions)
        prepared = self._ahead.pop(key, None)
        collated = prepared.result() if prepared else self._collated(key)
        batch = to_device(collated, self._device)
        with self._cache.reuse_states(model, model_inputs(batch), model_inputs(collated)):
            return self._objective.losses(model, batch)

    def _collated(self, positions: tuple[int, ...]) -> Batch:
        batch = self._collate(positions)
        if self._device.type == "cuda":
            # Page-locked memory is copied to the GPU while it computes.
            return {name: tensor.pin_memory() for name, tensor in batch.items()}
        return batch

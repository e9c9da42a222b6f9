"""Cached hidden states of examples, and the memory limits for them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

CPU = torch.device("cpu")
# A device, and a number of bytes on it.
Reservation = tuple[torch.device, int]


class MemoryBudget:
    """A memory limit that all caches of a process share, for each device.

    On the CPU it is the given limit; on a GPU at most that, and at most half of what is free at the first use, since
    training needs the rest.

    Args:
        limit_bytes: Limit in bytes; 0 disables caching.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._limits: dict[torch.device, int] = {}
        self._used: Counter[torch.device] = Counter()

    def fits(self, size: int, device: torch.device) -> bool:
        """Return whether ``size`` bytes are free on a device."""
        if device not in self._limits:
            self._limits[device] = self.limit_bytes
            if device.type == "cuda":
                self._limits[device] = min(self.limit_bytes, torch.cuda.mem_get_info(device)[0] // 2)
        return self._used[device] + size <= self._limits[device]

    def reserve(self, tensor: Tensor, reservations: list[Reservation]) -> bool:
        """Add a tensor's bytes on its device to the reservations and return True, or return False if fewer are free."""
        size = num_bytes(tensor)
        fits = self.fits(size, tensor.device)
        if fits:
            self._used[tensor.device] += size
            reservations.append((tensor.device, size))
        return fits

    def release(self, reservations: list[Reservation]) -> None:
        """Release the reservations of a deleted store."""
        for device, size in reservations:
            self._used[device] -= size
        reservations.clear()


class StateStore:
    """Cached hidden states of examples, keyed by their tokens.

    All models that are identical below their lowest adapted layer can share a store, or have a part of it if they cache
    more.

    Args:
        budget: The memory limit; states that do not fit are recomputed each time.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.states: dict[bytes, Tensor] = {}
        self._parts: dict[bytes, StateStore] = {}
        self._product_weights: list[Tensor] | None = None
        self._reserved: list[Reservation] = []
        weakref.finalize(self, budget.release, self._reserved)

    def part(self, digest: bytes) -> StateStore:
        """Return the part for models that also cache what the digest stands for; itself for an empty digest."""
        if not digest:
            return self
        return self._parts.setdefault(digest, StateStore(self.budget))

    def add(self, key: bytes, state: Tensor) -> None:
        """Cache one example's states, shape (tokens, d), if the budget allows."""
        if self.budget.reserve(state, self._reserved):
            self.states[key] = state

    def place(self, states: Tensor) -> Tensor:
        """Return new states where they are to be cached: on their device if they fit there, otherwise on the CPU."""
        return states if self.budget.fits(num_bytes(states), states.device) else states.cpu()

    def product_weights(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the weights of all products cached here: copies of the ``weights`` passed by the first caller."""
        if self._product_weights is None:
            self._product_weights = [weight.clone() for weight in weights]
        return self._product_weights


def padded(states: Sequence[Tensor], mask: Tensor, device: torch.device) -> Tensor:
    """Return the states of several examples in one tensor on a device, zeros at padding.

    Args:
        states: The states of each example, shape (tokens, d).
        mask: On the CPU, shape (batch, length), True at an example's tokens, which come before its padding.
        device: A device.

    Returns:
        A tensor of shape (batch, length, d).
    """
    if bool(mask.all()):
        return concatenate(states, device).view(*mask.shape, -1)
    if device == CPU:
        # One copy; on a GPU, one small copy per example would take longer than the following two large ones.
        rows = pad_sequence(list(states), batch_first=True)
        missing = mask.shape[1] - rows.shape[1]
        return functional.pad(rows, (0, 0, 0, missing)) if missing else rows
    result = states[0].new_zeros(mask.numel(), states[0].shape[-1], device=device)
    # Found on the CPU: indexing with a mask on a GPU would wait for it.
    positions = mask.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
    return result.index_copy_(0, positions, concatenate(states, device)).view(*mask.shape, -1)


def concatenate(states: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the states of several examples one after the other on a device, after at most one transfer."""
    elsewhere = [state for state in states if state.device != device]
    if len(elsewhere) in (0, len(states)):
        return torch.cat(list(states)).to(device)
    moved = iter(torch.split(torch.cat(elsewhere).to(device), [len(state) for state in elsewhere]))
    return torch.cat([state if state.device == device else next(moved) for state in states])


def num_bytes(tensor: Tensor) -> int:
    """Return the size of a tensor in bytes."""
    return tensor.numel() * tensor.element_size()

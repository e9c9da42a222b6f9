"""From the clients' replies to one adapter: weighted means, and one refactorization for all sites of a shape."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsvd.errors import RunError
from fedsvd.lora.adapter import PARTS, Adapter, Part
from fedsvd.lora.refactorize import refactorize


@dataclass(frozen=True)
class Reply:
    """What one client sent back in one round, already validated.

    Attributes:
        partition_id: The client's number; replies are summed in this order, so that a sum has one value.
        num_examples: Size of the client's data set: its weight in a mean.
        parts: The trained parts, each from name to tensor. A client of a lower rank sends fewer columns of B and fewer
            rows of A.
        noise_std: Standard deviation of the noise that differential privacy put into each entry; 0 without.
    """

    partition_id: int
    num_examples: int
    parts: Mapping[Part, Mapping[str, Tensor]]
    noise_std: float = 0.0


Replies = Sequence[Reply]


def sort_replies(replies: Replies) -> list[Reply]:
    """Return the replies in the order in which they are summed."""
    return sorted(replies, key=lambda reply: reply.partition_id)


def reply_weights(replies: Replies) -> list[float]:
    """Return each reply's share pₖ of all examples, in the order of `sort_replies`.

    Raises:
        RunError: No replies, or no examples in all of them.
    """
    total = sum(reply.num_examples for reply in replies)
    if total <= 0:
        raise RunError(f"{len(replies)} replies with {total} examples in all cannot be averaged; at least 1 is needed.")
    return [reply.num_examples / total for reply in sort_replies(replies)]


def average(adapter: Adapter, replies: Replies, only: Collection[Part] = PARTS) -> Adapter:
    """Replace every part that the replies carry (and ``only`` names) by its mean, weighted by ``num_examples``.

    The mean Σ nₖ Xₖ / Σ nₖ (McMahan et al. 2017, arXiv 1602.05629, Algorithm 1) is summed in float64 in the order
    of ``partition_id`` and cast back to each tensor's own type. What a client of a lower rank does not hold counts as
    left where it was.

    Raises:
        RunError: No replies, no examples in all of them, or replies that carry different parts.
    """
    shares, in_order = reply_weights(replies), sort_replies(replies)
    names = in_order[0].parts.keys()
    if any(reply.parts.keys() != names for reply in in_order):
        raise RunError("the replies of one round carry different parts and cannot be averaged.")
    means: dict[Part, dict[str, Tensor]] = {
        part: {
            key: _mean([reply.parts[part][key] for reply in in_order], shares, adapter.part(part)[key])
            for key in in_order[0].parts[part]
        }
        for part in names
        if part in only
    }
    return adapter.with_parts(means)


def mean_noise_std(replies: Replies) -> float:
    """Return the standard deviation of the noise in each entry of the replies' mean: ``√Σ pₖ² sₖ²``."""
    pairs = zip(reply_weights(replies), sort_replies(replies), strict=True)
    return math.sqrt(sum((share * reply.noise_std) ** 2 for share, reply in pairs))


def flatten_parts(adapter: Adapter, parts: Collection[Part]) -> list[Tensor]:
    """Return the tensors of some parts as one list, in the adapter's order; `unflatten_parts` puts them back."""
    return [tensor for part in PARTS if part in parts for tensor in adapter.part(part).values()]


def unflatten_parts(adapter: Adapter, parts: Collection[Part], tensors: Sequence[Tensor]) -> Adapter:
    """Replace some parts by a list as `flatten_parts` gives it, cast to the adapter's types."""
    left = iter(tensors)
    return adapter.with_parts(
        {
            part: {name: next(left).to(old.dtype) for name, old in adapter.part(part).items()}
            for part in PARTS
            if part in parts
        }
    )


def refactorize_sites(adapter: Adapter, *, of_rows: bool = True) -> tuple[Adapter, dict[str, Tensor]]:
    """Refactorize every site's B A, in one batched call for all sites of one shape.

    Args:
        adapter: The products to keep.
        of_rows: Make the rows of A orthonormal, and let B carry the singular values; False makes the columns of B
            orthonormal, and lets A carry them.

    Returns:
        The adapter with the same products, and each site's rotation R (float64): of A to ``Rᵀ A``, or, with
        ``of_rows=False``, of B to ``B R``.
    """
    groups: dict[tuple[torch.Size, torch.Size], list[str]] = defaultdict(list)
    for name in adapter.A:
        groups[adapter.B[name].shape, adapter.A[name].shape].append(name)
    A: dict[str, Tensor] = {}
    B: dict[str, Tensor] = {}
    rotations: dict[str, Tensor] = {}
    for names in groups.values():
        Bs, As = torch.stack([adapter.B[n] for n in names]), torch.stack([adapter.A[n] for n in names])
        result = refactorize(Bs, As) if of_rows else refactorize(As.mT, Bs.mT)
        new_B, new_A = (result.B, result.A) if of_rows else (result.A.mT, result.B.mT)
        A.update(zip(names, new_A.contiguous().unbind(), strict=True))
        B.update(zip(names, new_B.contiguous().unbind(), strict=True))
        rotations.update(zip(names, result.rotation.unbind(), strict=True))
    return adapter.with_parts({"A": {n: A[n] for n in adapter.A}, "B": {n: B[n] for n in adapter.B}}), rotations


def pad_to_rank(tensor: Tensor, before: Tensor) -> Tensor:
    """Return a client's tensor in float64; what a client of a lower rank does not hold is left where it was."""
    if tensor.shape == before.shape:
        return tensor.to(torch.float64)
    whole = before.to(torch.float64)
    whole = whole.clone() if whole is before else whole
    whole[tuple(slice(size) for size in tensor.shape)] = tensor.to(torch.float64)
    return whole


def _mean(tensors: Sequence[Tensor], shares: Sequence[float], before: Tensor) -> Tensor:
    total = torch.zeros_like(before, dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(pad_to_rank(tensor, before), alpha=share)
    return total.to(before.dtype)

"""From the clients' replies to one adapter: weighted means, and one refactorization for all sites of a shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsvd.adapter import PARTS, Adapter, Part
from fedsvd.errors import RunError
from fedsvd.refactorize import refactorize


@dataclass(frozen=True)
class Reply:
    """What one client sent back in one round, already validated.

    Attributes:
        partition_id: The client's number; replies are summed in this order, so that a sum has one value.
        num_examples: Size of the client's data set: its weight in a mean.
        parts: The trained parts, each from name to tensor.
    """

    partition_id: int
    num_examples: int
    parts: Mapping[Part, Mapping[str, Tensor]]


Replies = Sequence[Reply]


def average(adapter: Adapter, replies: Replies) -> Adapter:
    """Replace every part that the replies carry by its mean, weighted by ``num_examples``.

    The mean Σ nₖ Xₖ / Σ nₖ (McMahan et al. 2017, arXiv 1602.05629, Algorithm 1) is summed in float64 in the order
    of ``partition_id`` and cast back to each tensor's own type.

    Raises:
        RunError: No replies, no examples in all of them, or replies that carry different parts.
    """
    ordered = sorted(replies, key=lambda reply: reply.partition_id)
    total = sum(reply.num_examples for reply in ordered)
    if total <= 0:
        raise RunError(f"{len(ordered)} replies with {total} examples in all cannot be averaged; at least 1 is needed.")
    names = ordered[0].parts.keys()
    if any(reply.parts.keys() != names for reply in ordered):
        raise RunError("the replies of one round carry different parts and cannot be averaged.")
    weights = [reply.num_examples / total for reply in ordered]
    means: dict[Part, dict[str, Tensor]] = {
        part: {key: _mean([reply.parts[part][key] for reply in ordered], weights) for key in ordered[0].parts[part]}
        for part in names
    }
    return adapter.with_parts(means)


def flat(adapter: Adapter, parts: Collection[Part]) -> list[Tensor]:
    """Return the tensors of some parts as one list, in the adapter's order; `with_flat` puts them back."""
    return [tensor for part in PARTS if part in parts for tensor in adapter.part(part).values()]


def with_flat(adapter: Adapter, parts: Collection[Part], tensors: Sequence[Tensor]) -> Adapter:
    """Replace some parts by a list as `flat` gives it, cast to the adapter's types."""
    left = iter(tensors)
    return adapter.with_parts(
        {
            part: {name: next(left).to(old.dtype) for name, old in adapter.part(part).items()}
            for part in PARTS
            if part in parts
        }
    )


def refactorize_sites(adapter: Adapter) -> Adapter:
    """Refactorize every site's B A, in one batched call for all sites of one shape.

    Returns:
        The adapter with the same products B A, orthonormal rows in A and orthogonal columns in B.
    """
    groups: dict[tuple[torch.Size, torch.Size], list[str]] = defaultdict(list)
    for name in adapter.A:
        groups[adapter.B[name].shape, adapter.A[name].shape].append(name)
    A: dict[str, Tensor] = {}
    B: dict[str, Tensor] = {}
    for names in groups.values():
        result = refactorize(torch.stack([adapter.B[n] for n in names]), torch.stack([adapter.A[n] for n in names]))
        A.update(zip(names, result.A.unbind(), strict=True))
        B.update(zip(names, result.B.unbind(), strict=True))
    return adapter.with_parts({"A": {n: A[n] for n in adapter.A}, "B": {n: B[n] for n in adapter.B}})


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.to(torch.float64), alpha=weight)
    return total.to(tensors[0].dtype)

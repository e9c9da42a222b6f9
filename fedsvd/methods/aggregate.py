"""Aggregation of client replies into one adapter by weighted means."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsvd.errors import RunError
from fedsvd.lora.adapter import PARTS, Adapter, Part
from fedsvd.lora.stacked import Sites, stack


@dataclass(frozen=True)
class Reply:
    """One client's validated reply in one round.

    Attributes:
        partition_id: The client's index. Replies are summed in this order, which makes sums deterministic.
        num_examples: Size of the client's dataset, or another number of at least 0: its weight in a mean.
        parts: The trained parts, each a mapping from name to tensor. A client of a lower rank sends fewer columns of B
            and fewer rows of A.
        noise_std: Standard deviation of the differential privacy noise in each entry; 0 without noise.
    """

    partition_id: int
    num_examples: float
    parts: Mapping[Part, Mapping[str, Tensor]]
    noise_std: float = 0.0


Replies = Sequence[Reply]


def sort_replies(replies: Replies) -> list[Reply]:
    """Return the replies sorted by ``partition_id``, the order in which they are summed."""
    return sorted(replies, key=lambda reply: reply.partition_id)


def reply_weights(replies: Replies) -> list[float]:
    """Return each reply's share pₖ of the total number of examples, in the order of `sort_replies`.

    Raises:
        RunError: There are no replies, or their total number of examples is 0.
    """
    total = sum(reply.num_examples for reply in replies)
    if total <= 0:
        raise RunError(
            f"{len(replies)} replies with {total} examples in total cannot be averaged; at least 1 example is required."
        )
    return [reply.num_examples / total for reply in sort_replies(replies)]


def average(adapter: Adapter, replies: Replies, only: Collection[Part] = PARTS) -> Adapter:
    """Replace each part that the replies contain (and that is in ``only``) by its mean weighted by ``num_examples``.

    The mean Σ nₖ Xₖ / Σ nₖ (McMahan et al. 2017, arXiv 1602.05629, Algorithm 1) is summed in float64, in order of
    ``partition_id``, and cast back to each tensor's dtype. Entries that a client of a lower rank does not have count
    as unchanged.

    Raises:
        RunError: There are no replies, their total number of examples is 0, or they contain different parts.
    """
    weights, ordered = reply_weights(replies), sort_replies(replies)
    names = ordered[0].parts.keys()
    if any(reply.parts.keys() != names for reply in ordered):
        raise RunError("the replies of one round contain different parts and cannot be averaged.")
    means: dict[Part, dict[str, Tensor]] = {
        part: {
            key: _mean([reply.parts[part][key] for reply in ordered], weights, adapter.part(part)[key])
            for key in ordered[0].parts[part]
        }
        for part in names
        if part in only
    }
    return adapter.with_parts(means)


def stack_products(replies: Replies) -> tuple[Sites, Sites]:
    """Return the factors of the weighted mean of the replies' products, ``Σ pₖ BₖAₖ``, as `fedsvd.lora.stacked.stack`.

    Raises:
        RunError: There are no replies, or their total number of examples is 0.
    """
    clients = sort_replies(replies)
    return stack(
        reply_weights(replies), [reply.parts["B"] for reply in clients], [reply.parts["A"] for reply in clients]
    )


def mean_noise_std(replies: Replies) -> float:
    """Return the standard deviation of the noise in each entry of the replies' mean, ``√Σ pₖ² sₖ²``."""
    pairs = zip(reply_weights(replies), sort_replies(replies), strict=True)
    return math.sqrt(sum((weight * reply.noise_std) ** 2 for weight, reply in pairs))


def flatten_parts(adapter: Adapter, parts: Collection[Part]) -> list[Tensor]:
    """Return the tensors of the given parts as one list, in the adapter's order; `unflatten_parts` is the inverse."""
    return [tensor for part in PARTS if part in parts for tensor in adapter.part(part).values()]


def unflatten_parts(adapter: Adapter, parts: Collection[Part], tensors: Sequence[Tensor]) -> Adapter:
    """Return the adapter with the given parts replaced by a list as returned by `flatten_parts`, cast to its dtypes."""
    remaining = iter(tensors)
    return adapter.with_parts(
        {
            part: {name: next(remaining).to(old.dtype) for name, old in adapter.part(part).items()}
            for part in PARTS
            if part in parts
        }
    )


def pad_to_rank(tensor: Tensor, before: Tensor) -> Tensor:
    """Return a client's tensor in float64, padded to the shape of ``before`` with the entries of ``before``."""
    if tensor.shape == before.shape:
        return tensor.to(torch.float64)
    padded = before.to(torch.float64)
    padded = padded.clone() if padded is before else padded
    padded[tuple(slice(size) for size in tensor.shape)] = tensor.to(torch.float64)
    return padded


def _mean(tensors: Sequence[Tensor], weights: Sequence[float], before: Tensor) -> Tensor:
    total = torch.zeros_like(before, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(pad_to_rank(tensor, before), alpha=weight)
    return total.to(before.dtype)

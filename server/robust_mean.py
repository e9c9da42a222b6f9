"""Means that hold against clients that lie: coordinate by coordinate, each client counted once.

Both are those of Yin et al. (ICML 2018, arXiv 1803.01498, Definitions 1 and 2). With fewer liars than are cut off at
each end (for the median: than half), every coordinate of the result lies between two values of honest clients. Numbers
of examples have no say, since a liar would name a large one. Replies are kept until the last has come: unlike with the
plain mean, memory grows with the clients of a round.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedsvd.errors import RunError
from fedsvd.lora.adapter import PARTS, Adapter, Part
from fedsvd.methods.aggregate import Replies, Reply, pad_to_rank, sort_replies


def median(adapter: Adapter, replies: Replies) -> Reply:
    """Return the one reply that holds each coordinate's median; of an even number, the mean of the middle two.

    Args:
        adapter: What the clients started from: it stands where a client of a lower rank holds nothing.
        replies: At least one; all with the same parts.

    Raises:
        RunError: No replies, or replies that carry different parts.
    """
    return _reduced(adapter, replies, lambda values: _middle(values, (len(values) - 1) // 2))


def trimmed_mean(adapter: Adapter, replies: Replies, trim_share: float) -> Reply:
    """Return the one reply that holds each coordinate's mean without its extremes.

    Args:
        adapter: As in `median`.
        replies: At least one; all with the same parts.
        trim_share: Share of the replies that is cut off at each end, rounded down; below one half.

    Raises:
        RunError: No replies, or replies that carry different parts.
    """
    return _reduced(adapter, replies, lambda values: _middle(values, int(trim_share * len(values))))


def _middle(values: Tensor, cut: int) -> Tensor:
    kept: Tensor = values.sort(dim=0).values[cut : len(values) - cut]
    return kept.mean(dim=0)


def _reduced(adapter: Adapter, replies: Replies, reduce: Callable[[Tensor], Tensor]) -> Reply:
    in_order = sort_replies(replies)
    if not in_order or any(reply.parts.keys() != in_order[0].parts.keys() for reply in in_order):
        raise RunError(f"{len(in_order)} replies, of one round and with the same parts, are needed: at least 1.")
    parts: dict[Part, dict[str, Tensor]] = {
        part: {
            name: reduce(torch.stack([pad_to_rank(reply.parts[part][name], before) for reply in in_order]))
            for name, before in adapter.part(part).items()
        }
        for part in PARTS
        if part in in_order[0].parts
    }
    # How much noise is left in a median is not known, so that nothing is built on it.
    return Reply(0, sum(reply.num_examples for reply in in_order), parts)

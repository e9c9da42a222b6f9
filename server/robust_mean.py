"""Robust aggregation: coordinate-wise median and trimmed mean, with equal weights.

Both follow Yin et al. (ICML 2018, arXiv 1803.01498, Definitions 1 and 2). If no more clients are malicious than are
trimmed at each end (for the median, fewer than half), each coordinate of the result lies between values of honest
clients. The number of trimmed replies does not depend on how many clients reply, since those that do not may be honest.
The numbers of examples are not used as weights, since a malicious client could report a large one. All replies are
stored until the last has arrived: unlike for the plain mean, memory grows with the number of clients in a round.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedsvd.errors import RunError
from fedsvd.lora.adapter import PARTS, Adapter, Part
from fedsvd.methods.aggregate import Replies, Reply, pad_to_rank, sort_replies


def median(adapter: Adapter, replies: Replies) -> Reply:
    """Return one reply with the median of each coordinate; for an even number of replies, the mean of the middle two.

    Args:
        adapter: The adapter that the clients started from; it fills the entries that a client of lower rank lacks.
        replies: At least one reply; all with the same parts.

    Raises:
        RunError: If there are no replies, or their parts differ.
    """
    return _reduce_coordinates(adapter, replies, lambda values: _mean_of_middle(values, (len(values) - 1) // 2))


def trimmed_mean(adapter: Adapter, replies: Replies, num_trimmed: int) -> Reply:
    """Return one reply with the trimmed mean of each coordinate.

    Args:
        adapter: As for `median`.
        replies: More than twice ``num_trimmed`` replies; all with the same parts.
        num_trimmed: Number of replies to trim at each end: so many may be malicious.

    Raises:
        RunError: If there are too few replies, or their parts differ.
    """
    if len(replies) <= 2 * num_trimmed:
        raise RunError(
            f"cannot trim {num_trimmed} of {len(replies)} replies at each end: expected {2 * num_trimmed + 1} or more."
        )
    return _reduce_coordinates(adapter, replies, lambda values: _mean_of_middle(values, num_trimmed))


def _mean_of_middle(values: Tensor, cut: int) -> Tensor:
    middle: Tensor = values.sort(dim=0).values[cut : len(values) - cut]
    return middle.mean(dim=0)


def _reduce_coordinates(adapter: Adapter, replies: Replies, reduce: Callable[[Tensor], Tensor]) -> Reply:
    ordered = sort_replies(replies)
    if not ordered or any(reply.parts.keys() != ordered[0].parts.keys() for reply in ordered):
        raise RunError(f"cannot aggregate {len(ordered)} replies: expected at least 1, all with the same parts.")
    parts: dict[Part, dict[str, Tensor]] = {
        part: {
            name: reduce(torch.stack([pad_to_rank(reply.parts[part][name], before) for reply in ordered]))
            for name, before in adapter.part(part).items()
        }
        for part in PARTS
        if part in ordered[0].parts
    }
    # noise_std is left at 0 (unknown): the noise in a median or trimmed mean is not known.
    return Reply(0, sum(reply.num_examples for reply in ordered), parts)

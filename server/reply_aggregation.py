"""Aggregation of a round's valid replies into the input of the server step."""

from __future__ import annotations

from collections.abc import Iterable

from fedsvd.config import AggregationConfig
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import Method
from fedsvd.methods.aggregate import Replies, Reply
from server import robust_mean
from server.running_mean import running_mean


def aggregate_replies(
    replies: Iterable[Reply], adapter: Adapter, method: Method, aggregation: AggregationConfig
) -> Replies:
    """Aggregate replies as they arrive.

    Args:
        replies: The valid replies, in any order.
        adapter: The adapter that the clients started from.
        method: The run's method. If its server step needs only the mean, no single replies are stored.
        aggregation: The run's aggregation. The median and the trimmed mean store all replies until the last has
            arrived.

    Returns:
        The replies for the server step: one reply with the mean, or all of them; empty if there are none.
    """
    if aggregation.name == "mean" and method.traits.linear:
        mean = running_mean(adapter, replies)
        return [mean.reply] if mean.count else []
    stored = list(replies)
    if not stored or aggregation.name == "mean":
        return stored
    if aggregation.name == "median":
        return [robust_mean.median(adapter, stored)]
    return [robust_mean.trimmed_mean(adapter, stored, aggregation.trim_share)]

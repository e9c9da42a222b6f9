"""From a round's good replies to what the server step is given: their mean as they come, or all of them."""

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
    """Take replies in as they come.

    Args:
        replies: Those that were found good, in any order.
        adapter: What the clients started from.
        method: The run's; one that needs no more than the mean gets one reply that holds it, and no other is kept.
        aggregation: The run's; any but the mean keeps all replies until the last has come.

    Returns:
        What the server step is to be given; nothing where nobody replied.
    """
    if aggregation.name == "mean" and method.traits.linear:
        mean = running_mean(adapter, replies)
        return [mean.reply] if mean.count else []
    kept = list(replies)
    if not kept or aggregation.name == "mean":
        return kept
    if aggregation.name == "median":
        return [robust_mean.median(adapter, kept)]
    return [robust_mean.trimmed_mean(adapter, kept, aggregation.trim_share)]

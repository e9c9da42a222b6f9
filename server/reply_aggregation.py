"""Aggregation of a round's valid replies into the input of the server step."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedsvd.config import Config
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import Method
from fedsvd.methods.aggregate import Replies, Reply
from server import robust_mean
from server.running_mean import running_mean


def min_replies(config: Config, sampled: int) -> int:
    """Return the minimum number of valid replies with which a round takes a step.

    Args:
        config: The run's configuration.
        sampled: Number of clients that were asked to train.
    """
    federation = config.federation
    completion = math.ceil(federation.min_completion * sampled)
    return max(federation.min_replies, completion, config.aggregation.min_replies(federation.num_sampled))


def aggregate_replies(replies: Iterable[Reply], adapter: Adapter, method: Method, config: Config) -> Replies:
    """Aggregate replies as they arrive.

    Args:
        replies: The valid replies, in any order.
        adapter: The adapter that the clients started from.
        method: The run's method. If its server step needs only the mean, no single replies are stored.
        config: The run's configuration. The median and the trimmed mean store all replies until the last has arrived.

    Returns:
        The replies for the server step: one reply with the mean, or all of them; empty if there are none, or too few
        for the trimmed mean.
    """
    aggregation, num_sampled = config.aggregation, config.federation.num_sampled
    if aggregation.name == "mean" and method.traits.linear:
        mean = running_mean(adapter, replies)
        return [mean.reply] if mean.count else []
    stored = list(replies)
    if not stored or aggregation.name == "mean":
        return stored
    if aggregation.name == "median":
        return [robust_mean.median(adapter, stored)]
    if len(stored) < aggregation.min_replies(num_sampled):
        return []
    return [robust_mean.trimmed_mean(adapter, stored, aggregation.num_trimmed(num_sampled))]

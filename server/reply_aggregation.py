"""Aggregation of a round's valid replies into the input of the server step."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedsvd.config import Config
from fedsvd.config.shares import share_of
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import Method
from fedsvd.methods.aggregate import Replies, Reply
from server import robust_mean
from server.replies import RoundRecord, check_divergence
from server.running_mean import running_mean
from server.secure_grid import SecureGrid


def min_replies(config: Config, sampled: int) -> int:
    """Return the minimum number of valid replies with which a round takes a step.

    Args:
        config: The run's configuration.
        sampled: Number of clients that were asked to train.
    """
    federation = config.federation
    completion = math.ceil(share_of(federation.min_completion, sampled))
    return max(federation.min_replies, completion, config.aggregation.min_replies(federation.num_sampled))


def skip_reason(record: RoundRecord, config: Config, secure: SecureGrid | None) -> str | None:
    """Return why a round leaves the model unchanged; None if it takes a step.

    Args:
        record: The round, with all replies entered.
        config: The run's configuration.
        secure: The grid for secure aggregation; None without.

    Raises:
        DivergedError: Every sampled client's update diverged. Under client-level privacy the run continues: whether it
            ends must not depend on the clients' data.
    """
    failure = secure.reason if secure and not secure.outcome else None
    if config.privacy.name == "client_level":
        # The step is taken for any number of replies, even 0, and no reason says how many, to hide who took part.
        return failure and "too few clients for a secure sum"
    used = secure.outcome.contributors if secure and secure.outcome else len(record.reports)
    needed = min_replies(config, record.sampled)
    if failure is None and used >= needed:
        return None
    check_divergence(record, config)
    return failure or (
        f"{used} valid replies of {record.sampled}, at least {needed} needed "
        "(federation.min_replies, federation.min_completion, aggregation.trim_share)"
    )


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

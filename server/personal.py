"""What clients with models of their own say about them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from flwr.app import Message, MetricRecord

from fedsvd import wire

logger = logging.getLogger(__name__)


def mean_of(replies: Iterable[Message]) -> dict[str, float]:
    """Return the mean accuracy and loss over clients, each counted once; empty where none answered."""
    found: dict[str, list[float]] = {"accuracy": [], "loss": []}
    for reply in replies:
        reason = reply.error.reason if reply.has_error() else wire.declined_reason(reply.content)
        if reason is not None:
            logger.warning("node %d did not evaluate: %s", reply.metadata.src_node_id, reason)
            continue
        numbers = reply.content.metric_records.get(wire.METRICS, MetricRecord())
        values = [value for key in found if isinstance(value := numbers.get(key), float) and math.isfinite(value)]
        if len(values) == len(found):
            for key, value in zip(found, values, strict=True):
                found[key].append(value)
    return {key: sum(values) / len(values) for key, values in found.items() if values}

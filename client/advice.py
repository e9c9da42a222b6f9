"""What a client says once, in its own log, of settings that are allowed and rarely meant."""

from __future__ import annotations

import logging
from functools import lru_cache

from fedsvd.config import Config

logger = logging.getLogger(__name__)


def advise(config: Config, partition_id: int, num_examples: int) -> None:
    """Warn of a δ that lets whole examples through, and of batches that are the whole data."""
    if config.privacy.name == "dp_sgd":
        _advise(partition_id, num_examples, config.privacy.target_delta, config.train.batch_size)


@lru_cache(maxsize=1024)
def _advise(partition_id: int, num_examples: int, target_delta: float, batch_size: int) -> None:
    if target_delta * num_examples >= 1:
        logger.warning(
            "client %d: privacy.target_delta = %g is at least 1/%d, one over its number of examples: a mechanism that "
            "publishes one of them as it is could keep such a promise. Set it well below %.1g.",
            partition_id,
            target_delta,
            num_examples,
            1 / num_examples,
        )
    if batch_size > num_examples:
        logger.warning(
            "client %d: train.batch_size = %d is more than its %d examples: every step takes all of them, and ε gains "
            "nothing from sampling.",
            partition_id,
            batch_size,
            num_examples,
        )

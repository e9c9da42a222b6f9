"""What a client says once, in its own log, of settings that are allowed and rarely meant."""

from __future__ import annotations

import logging
from functools import lru_cache

from fedsvd.config import Config
from fedsvd.privacy.plan import example_warnings

logger = logging.getLogger(__name__)


def warn_unusual_settings(config: Config, partition_id: int, num_examples: int) -> None:
    """Warn of a δ that lets whole examples through, and of batches that are the whole data."""
    if config.privacy.name == "dp_sgd":
        _warn_once(partition_id, num_examples, config.privacy.target_delta, config.train.batch_size)


@lru_cache(maxsize=1024)
def _warn_once(partition_id: int, num_examples: int, target_delta: float, batch_size: int) -> None:
    for warning in example_warnings(num_examples, target_delta, batch_size):
        logger.warning("client %d: %s", partition_id, warning)

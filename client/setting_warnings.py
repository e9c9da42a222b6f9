"""Warnings about settings that are valid but rarely intended, logged once by the client."""

from __future__ import annotations

import logging
from functools import lru_cache

from fedsvd.config import Config, TrainConfig
from fedsvd.privacy.plan import example_warnings

logger = logging.getLogger(__name__)


def warn_unusual_settings(config: Config, partition_id: int, num_examples: int) -> None:
    """Warn of noise that can be found, of a δ that may disclose whole examples, and of batches of all examples."""
    if config.privacy.name != "none" and not config.privacy.secure_random:
        _warn_of_torch(partition_id)
    if config.privacy.name == "dp_sgd":
        _warn_once(partition_id, num_examples, config.privacy.target_delta, config.train)


@lru_cache(maxsize=1024)
def _warn_of_torch(partition_id: int) -> None:
    logger.warning(
        "client %d: privacy.secure_random = false: noise of torch's generators can be found by trying their 2^32 "
        "seeds; set it to true for real data",
        partition_id,
    )


@lru_cache(maxsize=1024)
def _warn_once(partition_id: int, num_examples: int, target_delta: float, train: TrainConfig) -> None:
    for warning in example_warnings(num_examples, target_delta, train):
        logger.warning("client %d: %s", partition_id, warning)

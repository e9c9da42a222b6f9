"""The base model of a configuration: the stock class of its architecture, or a classifier on pooled features."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from transformers import PreTrainedModel

from fedsvd.config import ModelConfig
from fedsvd.data.public_text import load_public_text
from fedsvd.models import loading
from fedsvd.models.pooled_loading import PublicText, load_pooled
from fedsvd.models.pooling import PoolingChoice, choose_pooling


def load_base(
    config: ModelConfig, num_labels: int, seed: int, device: str = "cpu"
) -> tuple[PreTrainedModel, list[str]]:
    """Load the base model for training.

    Args:
        config: The ``model`` configuration group.
        num_labels: Number of classes; unused for causal language models.
        seed: Seed of a classifier head.
        device: Where to compute the statistics of public text, if they are not cached yet.

    Returns:
        The model on the CPU, and the names of the modules that the checkpoint lacks: those of a classifier head.

    Raises:
        ModelError: The model cannot be loaded, does not support the pooling, or already has a classifier head.
        DataError: The public text cannot be used.
        AssetError: The package of an embedded model or of the embedded text is unavailable.
    """
    choice = pooling_choice(config)
    if choice is None or choice.is_stock:
        return loading.load_base(config, num_labels, seed)
    public = _public_text(config.public_text) if config.standardize == "public" else None
    return load_pooled(config, choice, num_labels, seed, public, device), ["classifier"]


def pooling_choice(config: ModelConfig) -> PoolingChoice | None:
    """Return the resolved pooling of a classifier; None for a causal language model. Raises as `choose_pooling`."""
    return None if config.task == "causal_lm" else choose_pooling(config)


def describe_pooling(config: ModelConfig) -> dict[str, Any] | None:
    """Describe the pooling and the public text for the run's record; None for a causal language model.

    Raises:
        ModelError: The checkpoint does not support the pooling.
        DataError: The public text cannot be used.
    """
    choice = pooling_choice(config)
    if choice is None:
        return None
    public = _public_text(config.public_text) if config.standardize == "public" else None
    return {
        "tokens": choice.pooling,
        "layer": choice.layer,
        "stock_class": choice.is_stock,
        "reason": choice.reason,
        "public_text": dict(public.corpus) if public else None,
    }


@lru_cache(maxsize=2)
def _public_text(source: str) -> PublicText:
    texts = load_public_text(source)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return PublicText(tuple(texts), {"name": source, "sha256": digest, "num_texts": str(len(texts))})

"""The base model of a configuration: the stock class of its architecture, or a classifier on pooled features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import peft
from transformers import PreTrainedModel

from fedsvd.config import ModelConfig
from fedsvd.config.task import TASKS
from fedsvd.data.public_text import load_public_text
from fedsvd.models import loading
from fedsvd.models.checkpoint_head import KeptHead
from fedsvd.models.pooled import PooledClassifier
from fedsvd.models.pooled_loading import PublicText, load_pooled
from fedsvd.models.pooling import PoolingChoice, choose_pooling
from fedsvd.runs.folder import replaced


def load_base(
    config: ModelConfig,
    num_labels: int,
    seed: int,
    device: str = "cpu",
    kept: KeptHead | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """Load the base model for training.

    Args:
        config: The ``model`` configuration group.
        num_labels: Number of classes; unused for causal language models.
        seed: Seed of a classifier head.
        device: Where to quantize weights, and to compute the statistics of public text if they are not cached yet.
        kept: See `fedsvd.models.head_choice.HeadChoice`.

    Returns:
        The model on the CPU (quantized weights: on the device), and the names of the modules of a classifier head.

    Raises:
        ModelError: The model cannot be loaded, does not support the pooling, or has fewer positions than
            ``model.max_length``.
        DataError: The public text cannot be used.
        AssetError: The package of an embedded model or of the embedded text is unavailable.
    """
    choice = pooling_choice(config, kept is not None)
    if choice is None or choice.is_stock:
        return loading.load_base(config, num_labels, seed, kept, device)
    public = load_public_corpus(config.public_text) if config.standardize == "public" else None
    return load_pooled(config, choice, num_labels, seed, public, device), ["classifier"]


def pooling_choice(config: ModelConfig, keeps_head: bool = False) -> PoolingChoice | None:
    """Return the resolved pooling; None for a model with an output per token. Raises as `choose_pooling`."""
    return None if TASKS[config.task].reads_tokens else choose_pooling(config, keeps_head)


def describe_pooling(config: ModelConfig, keeps_head: bool = False) -> dict[str, Any] | None:
    """Describe the pooling and the public text for the run's record, the console and the report.

    Args:
        config: The ``model`` configuration group.
        keeps_head: Whether the checkpoint's classification head is kept.

    Returns:
        None for a model with an output per token.

    Raises:
        ModelError: The checkpoint does not support the pooling.
        DataError: The public text cannot be used.
    """
    choice = pooling_choice(config, keeps_head)
    if choice is None:
        return None
    corpus = dict(load_public_corpus(config.public_text).corpus) if config.standardize == "public" else None
    return {
        "summary": str(choice) + (f"; standardized by {_describe_corpus(corpus)}" if corpus else ""),
        "tokens": choice.pooling,
        "layer": choice.layer,
        "stock_class": choice.is_stock,
        "reason": choice.reason,
        "public_text": corpus,
    }


def recorded_choice(config: ModelConfig, recorded: Mapping[str, Any] | None) -> PoolingChoice | None:
    """Return the pooling of a finished run; None for a model with an output per token.

    Args:
        config: The run's ``model`` configuration group.
        recorded: What `describe_pooling` returned for the run; None if it was not recorded.
    """
    if recorded is None:
        return pooling_choice(config)
    return PoolingChoice(recorded["tokens"], recorded["layer"], recorded["stock_class"], recorded["reason"])


def save_standardization(model: peft.PeftModel, path: Path) -> None:
    """Write the standardization of a model's features, if it has one, atomically."""
    base = model.get_base_model()
    if isinstance(base, PooledClassifier) and base.standardization is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            base.standardization.save(temporary)


def _describe_corpus(corpus: Mapping[str, str]) -> str:
    return f"{corpus['num_texts']} public texts of {corpus['name']} (SHA-256 {corpus['sha256'][:16]}…)"


@lru_cache(maxsize=2)
def load_public_corpus(source: str) -> PublicText:
    """Load ``model.public_text`` with its fingerprint; raises as `fedsvd.data.public_text.load_public_text`."""
    texts = load_public_text(source)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return PublicText(tuple(texts), {"name": source, "sha256": digest, "num_texts": str(len(texts))})

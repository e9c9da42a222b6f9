"""Which hidden states a classifier reads: the setting ``model.pooling``, resolved for a checkpoint."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils.hub import cached_file

from fedsvd.config import ModelConfig
from fedsvd.errors import ModelError
from fedsvd.models.embedded import quiet_transformers, resolve_source
from fedsvd.models.load_errors import convert_errors
from fedsvd.models.loading import is_causal
from fedsvd.models.pooled import Pooling

logger = logging.getLogger(__name__)

# The modes of sentence-transformers that this library computes, by the name in 1_Pooling/config.json; versions before
# 5.7 store one flag per mode instead.
_SENTENCE_MODES: dict[str, Pooling] = {"cls": "first", "mean": "mean", "lasttoken": "last"}
_SENTENCE_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True)
class PoolingChoice:
    """A classifier's resolved pooling.

    Attributes:
        pooling: ``first``, ``mean`` or ``last``.
        layer: The layer whose hidden states are pooled, counted from 1; None for the last one.
        is_stock: Whether the model is the architecture's classifier of transformers, unchanged.
        reason: Why this pooling was chosen.
    """

    pooling: Pooling
    layer: int | None
    is_stock: bool
    reason: str

    def __str__(self) -> str:
        tokens = {"first": "first token", "mean": "mean of all tokens", "last": "last token"}[self.pooling]
        layer = "the last layer" if self.layer is None else f"layer {self.layer}"
        head = ", read by the stock classification head" if self.is_stock else ""
        return f"{tokens} of {layer}{head} ({self.reason})"


@lru_cache(maxsize=16)
def choose_pooling(config: ModelConfig, keeps_head: bool = False) -> PoolingChoice:
    """Resolve ``model.pooling``, ``model.pooling_layer`` and ``model.standardize`` for the checkpoint.

    Reads the checkpoint's configuration and, for ``auto``, its pooling file and pooler. A head of another package
    (``model.head``) never goes with the stock class. The choice is logged once.

    Args:
        config: The ``model`` configuration group.
        keeps_head: Whether the checkpoint's classification head is kept; it reads the features of the stock class.

    Raises:
        ModelError: The model cannot be loaded, has fewer layers than ``pooling_layer`` or ``lora_layers`` need, or is
            of a kind for which only the stock class works.
    """
    with quiet_transformers(), convert_errors(config.source):
        architecture = AutoConfig.from_pretrained(resolve_source(config.source))
    layer = _layer(config, architecture)
    # The stock class has a head of its own, and no features of other layers or with a standardization.
    plain = layer is None and config.standardize == "none" and config.head == "linear"
    stock = _stock_pooling(architecture)
    if config.pooling == "stock" or (architecture.is_encoder_decoder and config.pooling == "auto" and plain):
        choice = PoolingChoice(stock, None, True, "what the architecture's classifier does")
    elif keeps_head:
        choice = PoolingChoice(stock, None, True, "auto: what the checkpoint's classification head reads")
    elif config.pooling == "auto":
        choice = _automatic(config, architecture, layer, plain)
    else:
        choice = PoolingChoice(config.pooling, layer, plain and config.pooling == stock, "as configured")
    if not choice.is_stock and architecture.is_encoder_decoder:
        raise ModelError(
            f"model.source = {config.source!r} is an encoder-decoder model: model.pooling, model.pooling_layer, "
            "model.standardize and model.head are for encoders and decoders. Set model.pooling=stock, and leave the "
            "others out."
        )
    logger.info("pooling of %s: %s", config.source, choice)
    return choice


def is_untrained_pooler(dense: nn.Linear) -> bool:
    """Return whether a pooler's weights look as they were initialized: zero bias and the spectrum of random entries.

    The largest singular value of a random n × m matrix with entries of standard deviation σ converges to
    ``σ (√n + √m)`` (Marchenko and Pastur 1967) with relative fluctuations of order n^(-2/3). Training adds directions
    that stand out.
    """
    weight = dense.weight.detach().double()
    edge = weight.std() * (math.sqrt(weight.shape[0]) + math.sqrt(weight.shape[1]))
    largest = torch.linalg.matrix_norm(weight, ord=2)
    has_bias = dense.bias is not None and bool((dense.bias.abs() > 1e-6).any())
    return not has_bias and bool(largest <= edge * (1 + 2 * min(weight.shape) ** (-2 / 3)))


def _automatic(config: ModelConfig, architecture: PreTrainedConfig, layer: int | None, plain: bool) -> PoolingChoice:
    mode = _sentence_pooling(config.source)
    if mode is not None and mode in _SENTENCE_MODES:
        reason = f"auto: the sentence encoder's 1_Pooling/config.json names {mode}"
        return PoolingChoice(_SENTENCE_MODES[mode], layer, False, reason)
    if is_causal(architecture):
        return PoolingChoice(
            "last", layer, plain, "auto: in a causal model only the last token has read the whole text"
        )
    if _stock_pooling(architecture) == "mean":
        return PoolingChoice("mean", layer, plain, "auto: the architecture's classifier takes the mean")
    if layer is not None:
        return PoolingChoice("mean", layer, False, "auto: no pooler is trained for a layer below the last")
    pooler = _pooler(config.source)
    if pooler is None:
        return PoolingChoice(
            "mean", None, False, "auto: the checkpoint has no pooler, so no token is trained to sum up"
        )
    if is_untrained_pooler(pooler):
        return PoolingChoice(
            "mean", None, False, "auto: the checkpoint's pooler was never trained: its weights are random"
        )
    return PoolingChoice("first", None, plain, "auto: the checkpoint has a trained pooler of the first token")


def _layer(config: ModelConfig, architecture: PreTrainedConfig) -> int | None:
    """Return the layer to pool, None for the last one."""
    layers = int(architecture.num_hidden_layers)
    if config.pooling_layer == "last" or config.pooling_layer == layers:
        return None
    if config.pooling_layer > layers:
        raise ModelError(
            f"model.pooling_layer = {config.pooling_layer} is invalid: {config.source} has {layers} layers; expected "
            f"last, or 1 to {layers}."
        )
    wanted = config.lora_layers.removeprefix("top_")
    if wanted != "all" and int(wanted) > config.pooling_layer:
        raise ModelError(
            f"model.lora_layers = {config.lora_layers} is invalid with model.pooling_layer = {config.pooling_layer}: "
            f"layers above the pooled one are not computed; expected all, or top_1 to top_{config.pooling_layer}."
        )
    return config.pooling_layer


def _stock_pooling(architecture: PreTrainedConfig) -> Pooling:
    """Return the tokens that the classifier of transformers reads."""
    if getattr(architecture, "classifier_pooling", "cls") == "mean":
        return "mean"
    return "last" if is_causal(architecture) else "first"


def _sentence_pooling(source: str) -> str | None:
    """Return the mode in a sentence encoder's ``1_Pooling/config.json``; None if there is none."""
    with quiet_transformers(), convert_errors(source):
        path = cached_file(
            resolve_source(source),
            "1_Pooling/config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    if path is None:
        return None
    settings: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if "pooling_mode" in settings:
        return settings["pooling_mode"] if isinstance(settings["pooling_mode"], str) else None
    modes = [mode for flag, mode in _SENTENCE_FLAGS.items() if settings.get(flag)]
    return modes[0] if len(modes) == 1 else None


def _pooler(source: str) -> nn.Linear | None:
    """Load the checkpoint's pooler; None if it has none."""
    with quiet_transformers(), convert_errors(source), torch.random.fork_rng(devices=[]):
        folder = resolve_source(source)
        architecture = AutoConfig.from_pretrained(folder)
        # The other layers' weights are not read.
        architecture.num_hidden_layers = 1
        model, info = AutoModel.from_pretrained(folder, config=architecture, output_loading_info=True)
    dense = getattr(getattr(model, "pooler", None), "dense", None)
    missing = any(name.startswith("pooler.") for name in info["missing_keys"])
    return dense if isinstance(dense, nn.Linear) and not missing and isinstance(dense.weight, Tensor) else None

"""Load a `PooledClassifier`, and the standardization of its features, which is computed once and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from fedsvd.assets import build_once, cache_folder
from fedsvd.config import ModelConfig
from fedsvd.errors import ModelError
from fedsvd.models.digest import add_tensors
from fedsvd.models.embedded import quiet_transformers, resolve_source
from fedsvd.models.load_errors import convert_errors
from fedsvd.models.load_options import copy_marks, finish_loading, load_options, loader_arguments
from fedsvd.models.loading import adjust_config, load_tokenizer
from fedsvd.models.pooled import PooledClassifier
from fedsvd.models.pooling import PoolingChoice
from fedsvd.models.positions import check_max_length
from fedsvd.models.standardization import Standardization, half_whitening
from fedsvd.models.text_batches import text_batches

# Part of the cache key: increase it when the definition of features or statistics changes.
_VERSION = 2


@dataclass(frozen=True)
class PublicText:
    """Texts that are known to everybody, for statistics that cost no privacy.

    Attributes:
        texts: The texts.
        corpus: ``name``, ``sha256`` and ``num_texts``, as strings.
    """

    texts: tuple[str, ...]
    corpus: Mapping[str, str]


def load_pooled(
    config: ModelConfig,
    choice: PoolingChoice,
    num_labels: int,
    seed: int,
    standardization: Standardization | PublicText | None = None,
    device: str = "cpu",
) -> PooledClassifier:
    """Load the backbone up to the pooled layer and put a new head on it.

    Args:
        config: The ``model`` configuration group.
        choice: The resolved pooling.
        num_labels: Number of classes.
        seed: Seed of the head.
        standardization: The standardization, or the public text to compute it from; None for none.
        device: Where to quantize weights, and to compute statistics that are not cached yet.

    Returns:
        The model on the CPU (quantized weights: on the device; of a distributed backbone: the head), in eval mode,
        without dropout.

    Raises:
        ModelError: The model cannot be loaded, its checkpoint lacks parameters of the backbone, it has fewer positions
            than ``model.max_length``, or ``model.head`` is not usable.
        AssetError: The package of an embedded model is unavailable.
    """
    backbone = _load_backbone(config, choice.layer, device)
    if isinstance(standardization, PublicText):
        standardization = _cached_standardization(backbone, config, choice, standardization, device)
    model = PooledClassifier(backbone, choice.pooling, num_labels, seed, standardization, config.head)
    copy_marks(backbone, model)
    if config.device_map == "auto":
        # accelerate returns the output of a distributed backbone on the device of its inputs.
        model.place_head(device)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _load_backbone(config: ModelConfig, layer: int | None, device: str) -> PreTrainedModel:
    folder = resolve_source(config.source)
    with quiet_transformers(), convert_errors(config.source), torch.random.fork_rng(devices=[]):
        architecture = AutoConfig.from_pretrained(folder)
        adjust_config(architecture, config.source)
        if layer is not None:
            # Weights of the layers above are not read.
            architecture.num_hidden_layers = layer
            if getattr(architecture, "layer_types", None):
                architecture.layer_types = architecture.layer_types[:layer]
        model, info = AutoModel.from_pretrained(
            folder,
            config=architecture,
            output_loading_info=True,
            **loader_arguments(load_options(config, device), architecture, config.source),
        )
        finish_loading(model, load_options(config, device), config.source)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(
            f"model.source = {config.source!r} lacks parameters of {type(model).__name__}: {', '.join(missing[:3])}. "
            "Choose a complete checkpoint."
        )
    if isinstance(getattr(model, "pooler", None), torch.nn.Module):
        model.pooler = None
    check_max_length(model, config)
    backbone: PreTrainedModel = model
    return backbone


def _cached_standardization(
    backbone: PreTrainedModel, config: ModelConfig, choice: PoolingChoice, public: PublicText, device: str
) -> Standardization:
    settings = [_VERSION, choice.pooling, choice.layer, config.max_length, config.dtype, public.corpus["sha256"]]
    digest = hashlib.sha256(json.dumps(settings).encode())
    add_tensors(digest, sorted(backbone.state_dict().items()))

    def build(folder: Path) -> None:
        tokenizer = load_tokenizer(config.source)
        # from_pretrained returned the backbone in eval mode.
        model = PooledClassifier(backbone, choice.pooling, 1, 0)
        # accelerate has placed the layers of a distributed backbone.
        is_distributed = config.device_map == "auto"
        if not is_distributed:
            model.to(device)  # type: ignore[arg-type]
        pooled = _pool_texts(model, text_batches(public.texts, tokenizer, config.max_length, torch.device(device)))
        if not is_distributed and config.quantization == "none":
            backbone.to("cpu")  # type: ignore[arg-type]
        half_whitening(pooled, public.corpus).save(folder / "standardization.safetensors")

    folder = build_once(cache_folder() / f"standardization-{digest.hexdigest()[:32]}", build)
    return Standardization.load(folder / "standardization.safetensors")


@torch.inference_mode()
def _pool_texts(model: PooledClassifier, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """Return the pooled states of texts in the order of the batches, shape (texts, d), on the CPU."""
    return torch.cat([model.pooled_states(**batch).cpu() for batch in batches])

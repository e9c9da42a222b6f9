"""Loading of classifiers, causal language models and tokenizers: embedded, from local directories or from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fedsvd.config import ModelConfig
from fedsvd.config.task import TASKS
from fedsvd.errors import ModelError
from fedsvd.models.checkpoint_head import KeptHead, has_head, head_modules, renew_head, reorder_classes, whole_heads
from fedsvd.models.embedded import quiet_transformers, resolve_source
from fedsvd.models.label_range import unscale_head
from fedsvd.models.load_errors import convert_errors
from fedsvd.models.load_options import LoadOptions, finish_loading, load_options, loader_arguments
from fedsvd.models.output_layer import check_output_bias
from fedsvd.models.positions import check_max_length
from fedsvd.models.unquantized import keep_unquantized

_CLASSIFIERS: Mapping[str, Any] = {
    "SequenceClassification": AutoModelForSequenceClassification,
    "TokenClassification": AutoModelForTokenClassification,
}
_DEFAULTS = LoadOptions()


@dataclass(frozen=True)
class LoadedModel:
    """A base model.

    Attributes:
        model: The model, on the CPU or, if it is quantized, on its device, in eval mode, with dropout disabled.
        new_parameters: Names of parameters that the checkpoint lacks (a classifier head); initialized from the seed.
        path: The directory or hub id that the model was loaded from.
    """

    model: PreTrainedModel
    new_parameters: tuple[str, ...]
    path: str


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; if it has no padding token, use its end token for padding.

    Raises:
        ModelError: The tokenizer cannot be loaded, or has neither a padding nor an end token.
    """
    with quiet_transformers(), convert_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(resolve_source(source))
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"model.source = {source!r} has a tokenizer with neither a padding nor an end token; set its pad_token "
                "(for a language model also its eos_token) and save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(
    source: str,
    *,
    num_labels: int,
    seed: int,
    options: LoadOptions = _DEFAULTS,
    new_head: bool = False,
    kind: str = "SequenceClassification",
) -> LoadedModel:
    """Load a classifier of texts or tokens, whose new parameters depend only on ``seed``, so that all processes agree.

    All dropout probabilities in the model's configuration are set to 0.

    Args:
        source: See `fedsvd.models.embedded.resolve_source`.
        num_labels: Number of classes.
        seed: Seed of the parameters that the checkpoint lacks.
        options: Data type, quantization and attention implementation.
        new_head: Initialize the head from the seed even if the checkpoint has one.
        kind: The class of transformers, without the prefix ``AutoModelFor``: ``SequenceClassification`` or
            ``TokenClassification``.

    Raises:
        ModelError: The model cannot be loaded, lacks the attention implementation, or has a head for another number of
            labels.
        AssetError: The package of an embedded model is unavailable.
    """
    loaded = _load(_CLASSIFIERS[kind], source, seed, options, new_head, num_labels=num_labels)
    if is_causal(loaded.model.config):
        # Causal classifiers find the last token by this id, so it must match the tokenizer's padding token.
        loaded.model.config.pad_token_id = load_tokenizer(source).pad_token_id
    if new_head and not loaded.new_parameters:
        raise ModelError(
            f"model.source = {source!r} has a classification head that its config.json does not name: add "
            f"{type(loaded.model).__name__} to its architectures, or remove the head from the checkpoint."
        )
    return loaded


def load_causal_lm(source: str, options: LoadOptions = _DEFAULTS) -> LoadedModel:
    """Load a causal language model; see `load_classifier`.

    Raises:
        ModelError: The model cannot be loaded, or its checkpoint lacks parameters of a causal language model.
        AssetError: The package of an embedded model is unavailable.
    """
    loaded = _load(AutoModelForCausalLM, source, 0, options)
    if loaded.new_parameters:
        raise ModelError(
            f"model.source = {source!r} is not a causal language model: its checkpoint lacks "
            f"{', '.join(loaded.new_parameters[:3])}. Choose a causal language model, or set "
            "model.task=sequence_classification."
        )
    return loaded


def load_base(
    config: ModelConfig, num_labels: int, seed: int, kept: KeptHead | None = None, device: str = "cpu"
) -> tuple[PreTrainedModel, list[str]]:
    """Load the base model of the ``model`` configuration group, for training.

    Args:
        config: The ``model`` configuration group.
        num_labels: Number of classes; unused for causal language models.
        seed: Seed of a classifier head.
        kept: How the checkpoint's head is kept; None for a new head.
        device: The device on which weights are quantized.

    Returns:
        The model, and the names of the modules of a classifier head.

    Raises:
        ModelError: The model cannot be loaded, its checkpoint lacks parameters of the head to keep, that head cannot be
            mapped from ``data.label_range``, or the model has fewer positions than ``model.max_length``.
        AssetError: The package of an embedded model is unavailable.
    """
    options = load_options(config, device)
    kind = TASKS[config.task].auto_class
    if config.task == "causal_lm":
        model, head = load_causal_lm(config.source, options).model, []
    elif kept is None:
        loaded = load_classifier(
            config.source, num_labels=num_labels, seed=seed, options=options, new_head=True, kind=kind
        )
        model, head = loaded.model, sorted({name.rsplit(".", 1)[0] for name in loaded.new_parameters})
    else:
        model = _with_kept_head(config.source, kept, options, kind)
        head = head_modules(model)
    check_max_length(model, config)
    return model, whole_heads(model, head)


def _with_kept_head(source: str, kept: KeptHead, options: LoadOptions, kind: str) -> PreTrainedModel:
    loaded = load_classifier(source, num_labels=len(kept.rows), seed=0, options=options, kind=kind)
    if loaded.new_parameters:
        raise ModelError(
            f"model.source = {source!r} lacks parameters of its classification head: "
            f"{', '.join(loaded.new_parameters[:3])}. Choose a complete checkpoint, or set train.head_init=random."
        )
    reorder_classes(loaded.model, kept.rows)
    check_output_bias(loaded.model, source, kept.label_range)
    unscale_head(loaded.model, kept.label_range)
    return loaded.model


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Enable activation checkpointing: layers recompute their activations in the backward pass."""
    # transformers 5.2x renamed the method: the old name emits a warning there, and earlier versions lack the new one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _load(
    auto_class: Any,
    source: str,
    seed: int,
    options: LoadOptions,
    new_head: bool = False,
    **config_options: Any,
) -> LoadedModel:
    folder = resolve_source(source)
    with quiet_transformers(), convert_errors(source), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs' generators, which fork_rng does not restore here.
        torch.default_generator.manual_seed(seed)
        config = AutoConfig.from_pretrained(folder, **config_options)
        adjust_config(config, source)
        renews_head = new_head and has_head(config)
        arguments = loader_arguments(options, config, source)
        keep_unquantized(auto_class, config, arguments.get("quantization_config"))
        model, info = auto_class.from_pretrained(
            folder, config=config, output_loading_info=True, ignore_mismatched_sizes=renews_head, **arguments
        )
        finish_loading(model, options, source)
        if not renews_head:
            return LoadedModel(model, tuple(sorted(info["missing_keys"])), folder)
        torch.default_generator.manual_seed(seed)
        return LoadedModel(model, _renewed(model, info, source), folder)


def _renewed(model: PreTrainedModel, info: Mapping[str, Any], source: str) -> tuple[str, ...]:
    new = renew_head(model)
    lost = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])} - set(new))
    if lost:
        raise ModelError(
            f"model.source = {source!r} lacks parameters of {type(model).__name__}, or has them in other shapes: "
            f"{', '.join(lost[:3])}. Choose a complete checkpoint."
        )
    return new


def adjust_config(config: PreTrainedConfig, source: str) -> None:
    """Switch off dropout and the cache of keys and values, and set the padding token, in place."""
    # Dropout would add noise to that of differential privacy, and make results depend on a global generator.
    for key, value in vars(config).items():
        if is_dropout(key) and isinstance(value, float):
            setattr(config, key, 0.0)
    if config.pad_token_id is None:
        config.pad_token_id = load_tokenizer(source).pad_token_id
    # Training processes whole texts, so cached keys and values would only use memory.
    config.use_cache = False


def is_causal(config: PreTrainedConfig) -> bool:
    """Return whether an architecture's tokens read only those before them."""
    # BERT and its relatives are in both tables.
    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def is_dropout(key: str) -> bool:
    """Return whether a key of a model's configuration drops units or layers, or adds noise, in training only."""
    return any(part in key for part in ("dropout", "layerdrop", "jitter_noise")) or key.endswith("_pdrop")

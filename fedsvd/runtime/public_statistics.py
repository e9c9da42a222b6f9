"""Statistics of LoRA sites on public text, by site name: computed once and cached on disk.

They depend on the frozen model and on public text only (the columns of B also on the initial head): neither on private
text nor, but for a head that is drawn, on the seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedsvd.assets import build_once, cache_folder
from fedsvd.config import ModelConfig
from fedsvd.data.public_text import spread
from fedsvd.lora.frozen_weights import without_merged_base
from fedsvd.lora.public_pca import leading_directions
from fedsvd.models.digest import add_tensors
from fedsvd.models.loading import load_tokenizer
from fedsvd.models.standardization import half_whitening_without_mean
from fedsvd.models.text_batches import text_batches
from fedsvd.runtime.base_model import load_public_corpus
from fedsvd.training.loop import Batch
from fedsvd.training.site_inputs import site_input_moments, site_text_means
from fedsvd.training.site_outputs import output_directions

# Part of the cache key: increase it when a definition changes.
_VERSION = 3
# The texts have some twenty tokens each, so a thousand are many more tokens than a site has inputs.
MAX_TEXTS = 1000
# Jacobians point in few directions, and a backward pass per class takes longer.
_JACOBIAN_TEXTS = 200
_FILE = "statistics.safetensors"
# Parts of the names of PEFT's factors, and of heads, which are drawn from the seed.
_NOT_FROZEN = ("lora_", "modules_to_save", "original_module")


def public_rows(model: peft.PeftModel, config: ModelConfig) -> dict[str, Tensor]:
    """Return the rows of A for ``method.init_a=public_pca``, shape (r, d_in), float32, orthonormal.

    Args:
        model: The adapted model, without a merged base; its factors are disabled.
        config: The ``model`` configuration group.

    Raises:
        ModelError: The rank is too high for a site.
        DataError: The public text cannot be used.
    """

    def compute() -> dict[str, Tensor]:
        tokenizer = load_tokenizer(config.source)
        with _without_factors(model):
            moments = site_input_moments(model, _batches(config, model, MAX_TEXTS), tokenizer.all_special_ids)
        return {name: leading_directions(sums, config.rank, name) for name, sums in moments.items()}

    return _cached("pca", model, config, {}, compute)


def public_columns(model: peft.PeftModel, config: ModelConfig, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the columns of B for ``method.init_b=public_jacobian``, shape (d_out, r), float32, orthonormal.

    Args:
        model: The adapted model with B A = 0 and the initial head, without a merged base.
        config: The ``model`` configuration group.
        head: The initial head.

    Raises:
        ModelError: The rank is too high for a site.
        DataError: The public text cannot be used.
    """

    def compute() -> dict[str, Tensor]:
        return output_directions(model, _batches(config, model, _JACOBIAN_TEXTS), config.rank)

    return _cached("jacobian", model, config, head, compute)


@lru_cache(maxsize=2)
def input_preconditioners(model: peft.PeftModel, config: ModelConfig) -> dict[str, Tensor]:
    """Return M for ``privacy.standardize_inputs``, symmetric, shape (d_in, d_in), float32.

    The definition is in `fedsvd.models.standardization.half_whitening_without_mean`; the inputs are each text's means
    over its tokens. A linear classifier of mean-pooled features sees these means of the topmost layer only.

    Args:
        model: The adapted model; its factors are disabled and a merged base is taken out, so that M is the same in all
            rounds and processes.
        config: The ``model`` configuration group.

    Raises:
        DataError: The public text cannot be used.
    """

    def compute() -> dict[str, Tensor]:
        with _without_factors(model):
            means = site_text_means(model, _batches(config, model, MAX_TEXTS))
        return {name: half_whitening_without_mean(inputs) for name, inputs in means.items()}

    with without_merged_base(model):
        return _cached("inputs", model, config, {}, compute)


@lru_cache(maxsize=2)
def largest_preconditioner_norm(model: peft.PeftModel, config: ModelConfig) -> float:
    """Return the largest spectral norm of the matrices of `input_preconditioners`; same arguments and errors."""
    matrices = input_preconditioners(model, config).values()
    return max(float(torch.linalg.eigvalsh(matrix.double()).abs().max()) for matrix in matrices)


def clear_preconditioners() -> None:
    """Clear the caches of `input_preconditioners` and `largest_preconditioner_norm`, which hold models."""
    for cached in (input_preconditioners, largest_preconditioner_norm):
        cached.cache_clear()


@contextmanager
def _without_factors(model: peft.PeftModel) -> Iterator[None]:
    """Disable the factors; PEFT makes all of them trainable when it enables them again, which is undone."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def _batches(config: ModelConfig, model: peft.PeftModel, count: int) -> Iterator[Batch]:
    texts = spread(load_public_corpus(config.public_text).texts, count)
    return text_batches(texts, load_tokenizer(config.source), config.max_length, model.device)


def _cached(
    kind: str,
    model: peft.PeftModel,
    config: ModelConfig,
    head: Mapping[str, Tensor],
    compute: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    corpus = load_public_corpus(config.public_text)
    settings = [_VERSION, config.rank, config.max_length, config.dtype, config.lora_layers, str(config.target_modules)]
    digest = hashlib.sha256(json.dumps([*settings, config.pooling_layer, corpus.corpus["sha256"]]).encode())
    frozen = ((n, w) for n, w in model.named_parameters() if not any(part in n for part in _NOT_FROZEN))
    add_tensors(digest, (*frozen, *head.items()))

    def build(folder: Path) -> None:
        save_file({name: tensor.float().contiguous() for name, tensor in compute().items()}, folder / _FILE)

    return load_file(build_once(cache_folder() / f"public-{kind}-{digest.hexdigest()[:32]}", build) / _FILE)

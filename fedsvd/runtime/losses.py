"""What is computed once for each example and kept from run to run of a process: ways to losses and held-out states."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import lru_cache

import peft
from torch import Tensor, nn

from fedsvd import data
from fedsvd.config import Config, ModelConfig
from fedsvd.runtime.data import ClientData, clear_data_cache, load_tokenizer
from fedsvd.runtime.model import clear_model_cache, load_model, resolve_device
from fedsvd.training.loop import example_losses, model_inputs, to_device
from fedsvd.training.prefix_cache import MemoryBudget, PrefixCache, StateStore

# What decides the frozen lower layers, what they read and what reads their output: source, adapted layers and modules,
# attention, type, task, chat template.
_Base = tuple[str, str, str | tuple[str, ...], str, str, str, bool]


def per_example_losses(silo: ClientData, config: Config) -> Callable[[nn.Module, Sequence[int]], Tensor]:
    """Return the function from a model and positions in the silo to each example's loss."""
    tokenizer, device, prefix = load_tokenizer(config), resolve_device(config.device), load_prefix_cache(config)

    def losses(model: nn.Module, positions: Sequence[int]) -> Tensor:
        # One look-up for all: row by row, the data set takes as long as a layer.
        columns = silo.examples[list(positions)]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        batch = to_device(data.collate(rows, tokenizer), device)
        with prefix.reuse_states(model, model_inputs(batch)):
            return example_losses(model, batch)

    return losses


def load_prefix_cache(config: Config) -> PrefixCache:
    """Return the model's cache, whose states all models of one base share, whatever examples they come from."""
    return _load_prefix(load_model(config), _load_store(_base(config.model), config.train.prefix_cache_mib))


@lru_cache(maxsize=4)
def _load_prefix(model: peft.PeftModel, store: StateStore) -> PrefixCache:
    return PrefixCache(model, store)


@lru_cache(maxsize=2)
def _load_store(base: _Base, mebibytes: int) -> StateStore:
    return StateStore(_memory_budget(mebibytes))


def clear_caches(keep_states: bool = False) -> None:
    """Drop all that is loaded or kept once a process, to make room for another task or seed.

    Args:
        keep_states: Of frozen layers: texts that come again, in other clients' hands, are not computed again.
    """
    _load_prefix.cache_clear()
    if not keep_states:
        _load_store.cache_clear()
    clear_model_cache()
    clear_data_cache()
    gc.collect()


def _base(model: ModelConfig) -> _Base:
    adapted = (model.source, model.lora_layers, model.target_modules, model.attn_implementation)
    return (*adapted, model.dtype, model.task, model.chat_template)


@lru_cache(maxsize=1)
def _memory_budget(mebibytes: int) -> MemoryBudget:
    return MemoryBudget(mebibytes * 2**20)

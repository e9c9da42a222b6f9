"""What is computed once for each example and kept from run to run of a process: ways to losses and held-out states."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import lru_cache

import peft
from torch import Tensor, nn

from fedsvd import data
from fedsvd.config import Config, DataConfig, ModelConfig
from fedsvd.prefix import MemoryBudget, PrefixCache, Store
from fedsvd.training import example_losses, inputs, to_device
from fedsvd.workspace.data import Silo, forget_data, load_tokenizer
from fedsvd.workspace.model import forget_models, load_model, resolve_device

# What decides the frozen lower layers, what they read and what reads their output: source, adapted layers and modules,
# attention, type, task, chat template.
_Base = tuple[str, str, str | tuple[str, ...], str, str, str, bool]


def silo_losses(silo: Silo, config: Config) -> Callable[[nn.Module, Sequence[int]], Tensor]:
    """Return the function from a model and positions in the silo to each example's loss."""
    tokenizer, device = load_tokenizer(config), resolve_device(config.device)
    adapted = load_model(config)
    if adapted not in silo.prefixes:
        store = silo.stores.setdefault(_base(config.model), Store(_memory_budget(config.train.prefix_cache_mib)))
        silo.prefixes[adapted] = PrefixCache(adapted, store)
    prefix = silo.prefixes[adapted]

    def losses(model: nn.Module, positions: Sequence[int]) -> Tensor:
        # One look-up for all: row by row, the data set takes as long as a layer.
        columns = silo.examples[list(positions)]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        batch = to_device(data.collate(rows, tokenizer), device)
        with prefix.handing_in(model, positions, inputs(batch)):
            return example_losses(model, batch)

    return losses


def load_test_prefix(config: Config) -> PrefixCache:
    """Return the cache that belongs to the model and `load_test_batches`."""
    model = config.model
    store = _load_test_store(
        config.data,
        _base(model),
        model.max_length,
        config.train.eval_batch_size,
        config.train.prefix_cache_mib,
        config.seed,
    )
    return _load_test_prefix(load_model(config), store)


@lru_cache(maxsize=4)
def _load_test_prefix(model: peft.PeftModel, store: Store) -> PrefixCache:
    return PrefixCache(model, store)


@lru_cache(maxsize=2)
def _load_test_store(
    data_: DataConfig, base: _Base, max_length: int, batch_size: int, mebibytes: int, seed: int
) -> Store:
    return Store(_memory_budget(mebibytes))


def forget() -> None:
    """Drop all that is loaded or kept once a process, to make room for another task or seed."""
    _load_test_prefix.cache_clear()
    _load_test_store.cache_clear()
    forget_models()
    forget_data()
    gc.collect()


def _base(model: ModelConfig) -> _Base:
    adapted = (model.source, model.lora_layers, model.target_modules, model.attn_implementation)
    return (*adapted, model.dtype, model.task, model.chat_template)


@lru_cache(maxsize=1)
def _memory_budget(mebibytes: int) -> MemoryBudget:
    return MemoryBudget(mebibytes * 2**20)

"""Per-example losses of a client's data, and the caches that successive runs in one process share."""

from __future__ import annotations

import gc
from functools import lru_cache, partial

import peft
from transformers import PreTrainedTokenizerBase

from fedsvd import data
from fedsvd.config import Config, ModelConfig
from fedsvd.models.pooled import PooledClassifier
from fedsvd.privacy.physical_batches import BatchLimit
from fedsvd.privacy.plan import example_sample_rate
from fedsvd.runtime.class_weights import class_weights
from fedsvd.runtime.data import ClientData, class_names, clear_data_cache, load_tokenizer
from fedsvd.runtime.model import clear_model_cache, load_model, resolve_device
from fedsvd.training.example_losses import ExampleLosses
from fedsvd.training.feature_cache import FeatureCache, FeatureStore
from fedsvd.training.loop import Batch, StateCache
from fedsvd.training.objectives import Labels, Objective, make_objective
from fedsvd.training.prefix_cache import PrefixCache
from fedsvd.training.state_store import MemoryBudget, StateStore

# Padded batches of token ids kept in memory, at most about 100 KiB each.
_CACHED_BATCHES = 256
# ``train.physical_batch_size=auto`` on a CPU.
_CPU_BATCH = 128
# Settings that determine the frozen lower layers, their inputs and the layers that read their output: source, adapted
# layers and modules, attention implementation, dtype, quantization, task, chat template, pooled layer.
_PrefixKey = tuple[str, str, str | tuple[str, ...], str, str, str, str, bool, int | str]


def per_example_losses(client_data: ClientData, config: Config) -> ExampleLosses:
    """Return a function from a model and example indices of a client to the loss of each example."""
    # Steps on all examples have the same batches every time.
    takes_all = example_sample_rate(config.train, len(client_data.examples)) == 1
    # An example of DP-SGD is padded as its own length says, see `fedsvd.privacy.dp_sgd.train_dp_sgd`.
    max_length = config.model.max_length if config.privacy.name == "dp_sgd" else None
    return ExampleLosses(
        partial(_collate_cached if takes_all else _collate, client_data, load_tokenizer(config), max_length),
        resolve_device(config.device),
        load_prefix_cache(config),
        run_objective(config),
    )


def run_objective(config: Config) -> Objective:
    """Return the objective of a run's task, on the classes of its data."""
    return make_objective(config.task, Labels(class_names(config), config.data.label_range, class_weights(config)))


def batch_limit(config: Config) -> BatchLimit:
    """Return the limit of the number of examples in memory; all rounds of a process share what one has found."""
    size = config.train.physical_batch_size
    if size == "auto":
        is_cuda = resolve_device(config.device).type == "cuda"
        # A CPU does not report that memory is exhausted: the system stops the process.
        return _found_limit(config.model) if is_cuda else BatchLimit(_CPU_BATCH)
    return BatchLimit(size)


@lru_cache(maxsize=4)
def _found_limit(model: ModelConfig) -> BatchLimit:
    return BatchLimit()


@lru_cache(maxsize=64)
def example_lengths(client_data: ClientData) -> tuple[int, ...]:
    """Return the number of tokens of each example of a client."""
    return tuple(map(len, client_data.examples["input_ids"]))


@lru_cache(maxsize=64)
def padded_widths(client_data: ClientData, max_length: int) -> tuple[int, ...]:
    """Return the number of tokens to which each example of a client is padded under DP-SGD."""
    return tuple(data.padded_width(length, max_length) for length in example_lengths(client_data))


def _collate(
    client_data: ClientData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    positions: tuple[int, ...],
) -> Batch:
    # Read all rows at once: reading the data set row by row takes as long as a layer.
    columns = client_data.examples[list(positions)]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    longest = max(len(row["input_ids"]) for row in rows)
    return data.collate(rows, tokenizer, longest if max_length is None else data.padded_width(longest, max_length))


_collate_cached = lru_cache(maxsize=_CACHED_BATCHES)(_collate)


def load_prefix_cache(config: Config) -> StateCache:
    """Return the model's cache of frozen layers; all models with the same frozen lower layers share its states."""
    # The hooks that move states between devices are part of the layers that a cache would bypass.
    mebibytes = 0 if config.model.device_map == "auto" else config.train.prefix_cache_mib
    states, features = _load_store(_prefix_key(config.model), mebibytes), _load_features(config.model, mebibytes)
    train = config.train
    factors_follow = train.head_rounds > 0 and not train.is_head_only
    return _load_prefix(load_model(config), states, features, factors_follow)


@lru_cache(maxsize=4)
def _load_prefix(model: peft.PeftModel, store: StateStore, features: FeatureStore, factors_follow: bool) -> StateCache:
    prefix = PrefixCache(model, store)
    base = model.get_base_model()
    if isinstance(base, PooledClassifier):
        return FeatureCache(model, base, prefix, features, fill_prefix=factors_follow)
    return prefix


@lru_cache(maxsize=2)
def _load_store(prefix_key: _PrefixKey, mebibytes: int) -> StateStore:
    return StateStore(_memory_budget(mebibytes))


# The features depend on more settings than the states below the lowest adapted layer, on the standardization for one.
@lru_cache(maxsize=2)
def _load_features(config: ModelConfig, mebibytes: int) -> FeatureStore:
    return FeatureStore(_memory_budget(mebibytes))


def clear_caches(keep_states: bool = False) -> None:
    """Clear everything cached in this process, to free memory for another task or seed.

    Args:
        keep_states: Keep the cached states of frozen layers, so that they are not recomputed if the same texts are
            partitioned differently.
    """
    _load_prefix.cache_clear()
    _collate_cached.cache_clear()
    example_lengths.cache_clear()
    padded_widths.cache_clear()
    if not keep_states:
        _load_store.cache_clear()
        _load_features.cache_clear()
    clear_model_cache()
    clear_data_cache()
    gc.collect()


def _prefix_key(model: ModelConfig) -> _PrefixKey:
    adapted = (model.source, model.lora_layers, model.target_modules, model.attn_implementation)
    return (*adapted, model.dtype, model.quantization, model.task, model.chat_template, model.pooling_layer)


@lru_cache(maxsize=1)
def _memory_budget(mebibytes: int) -> MemoryBudget:
    return MemoryBudget(mebibytes * 2**20)

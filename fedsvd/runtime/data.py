"""Texts, partitions and tokenized examples of a configuration, shared by both apps and cached per process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fedsvd import data
from fedsvd.config import Config, DataConfig, ModelConfig, PartitionConfig
from fedsvd.data.conversations import CanLearn
from fedsvd.data.loaders import LoadedData
from fedsvd.data.rows import LeftOut
from fedsvd.data.targets import count_labels, dataset_classes
from fedsvd.models import loading
from fedsvd.training.loop import Batch

# What determines how rows are read: task, and for conversations source and max_length of the model that learns them.
_Reading = tuple[str, str, int]


@dataclass(frozen=True)
class ClientData:
    """One client's tokenized data.

    Attributes:
        examples: Columns ``input_ids`` and ``labels``; for text pairs possibly ``token_type_ids``, and for packed
            sequences ``position_ids``.
        fingerprint: See `load_fingerprint`.
    """

    examples: Dataset
    fingerprint: str


def load_partition(config: Config, partition_id: int) -> Dataset:
    """Load one client's partition as text, with columns ``text`` and ``label``.

    With a node's own data, this is all of it, or as much as the run's limit allows.
    """
    return _load_partition(
        config.data,
        config.partition,
        _reading(config.data, config.model),
        config.federation.num_clients,
        config.seed,
        partition_id,
    )


def load_fingerprint(config: Config, partition_id: int) -> str:
    """Return the fingerprint that a client's ledger is bound to: of a node, that of its whole file without limits."""
    reading, num_clients = _reading(config.data, config.model), config.federation.num_clients
    return _fingerprint(config.data, config.partition, reading, num_clients, config.seed, partition_id)


def load_client_data(config: Config, partition_id: int) -> ClientData:
    """Load one client's tokenized partition."""
    return _load_client_data(
        config.data,
        config.partition,
        config.model,
        config.train.packing,
        config.federation.num_clients,
        config.seed,
        partition_id,
    )


def partition_counts(config: Config) -> list[dict[str, int]]:
    """Count each simulated client's examples by class.

    The data of real nodes is not available on this machine.
    """
    num_clients = config.federation.num_clients
    parts = _load_partitions(
        config.data, config.partition, _reading(config.data, config.model), num_clients, config.seed
    )
    return [count_labels(part) for part in parts]


def class_names(config: Config) -> list[str]:
    """Return the names of the classes, in the order of the model's outputs; `VALUE` if it predicts a number."""
    return dataset_classes(load_run_data(config).splits["train"])


def load_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer."""
    return _load_tokenizer(config.model.source)


def left_out(config: Config) -> tuple[LeftOut, ...]:
    """Return the rows of the user's data that are left out; a node's own data are not available on this machine."""
    return load_run_data(config, _kept_column(config.partition)).left_out


def load_run_data(config: Config, keep_column: str | None = None) -> LoadedData:
    """Load the data of a run; see `fedsvd.data.loaders.load_data`."""
    return _load_data(config.data, config.seed, _reading(config.data, config.model), keep_column)


def load_held_out(config: Config) -> Dataset:
    """Load the held-out set as text, with columns ``text`` and ``label``."""
    return load_run_data(config).splits["test"]


def load_test_batches(config: Config) -> list[Batch]:
    """Load the held-out set as padded batches; an empty list if nothing is held out, as with nodes' own data."""
    return _load_test_batches(config.data, config.model, config.train.eval_batch_size, config.seed)


def clear_data_cache() -> None:
    """Clear the caches of this module, except the tokenizer's."""
    for loader in (_load_data, _load_partitions, _load_client_data, _load_test_batches):
        loader.cache_clear()


def clear_tokenizer_cache() -> None:
    """Clear the cache of tokenizers."""
    _load_tokenizer.cache_clear()


@lru_cache(maxsize=2)
def _load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    return loading.load_tokenizer(source)


def conversation_check(config: DataConfig, model: ModelConfig) -> CanLearn | None:
    """Return a function that tells whether a model can learn from a conversation; None if the data have none.

    Raises:
        DataError: The model's tokenizer has no chat template.
    """
    return _load_conversation_check(_reading(config, model))


def _reading(config: DataConfig, model: ModelConfig) -> _Reading:
    return (model.task, *((model.source, model.max_length) if config.row_format == "messages" else ("", 0)))


def _load_conversation_check(reading: _Reading) -> CanLearn | None:
    _, source, max_length = reading
    return data.conversation_check(_load_tokenizer(source), max_length) if source else None


@lru_cache(maxsize=2)
def _load_data(config: DataConfig, seed: int, reading: _Reading, keep_column: str | None) -> LoadedData:
    # Without default values: the cache would hold a call that leaves an argument out a second time.
    return data.load_data(config, seed, keep_column, _load_conversation_check(reading), reading[0])


def _kept_column(partition: PartitionConfig) -> str | None:
    return partition.column if partition.name == "by_column" else None


@lru_cache(maxsize=2)
def _load_partitions(
    config: DataConfig, partition: PartitionConfig, reading: _Reading, num_clients: int, seed: int
) -> tuple[Dataset, ...]:
    return tuple(
        data.partition(
            _load_data(config, seed, reading, _kept_column(partition)).splits["train"],
            name=partition.name,
            num_partitions=num_clients,
            dirichlet_alpha=partition.dirichlet_alpha,
            min_partition_size=partition.min_partition_size,
            seed=seed,
            column=partition.column,
            skew=partition.skew,
        )
    )


def _load_partition(
    config: DataConfig, partition: PartitionConfig, reading: _Reading, num_clients: int, seed: int, partition_id: int
) -> Dataset:
    if config.name == "node":
        return _load_data(config, seed, reading, None).splits["train"]
    return _load_partitions(config, partition, reading, num_clients, seed)[partition_id]


@lru_cache(maxsize=1024)
def _load_client_data(
    config: DataConfig,
    partition: PartitionConfig,
    model: ModelConfig,
    packing: bool,
    num_clients: int,
    seed: int,
    partition_id: int,
) -> ClientData:
    raw = _load_partition(config, partition, _reading(config, model), num_clients, seed, partition_id)
    examples = data.encode(raw, config, model, _load_tokenizer(model.source))
    # Poisson sampling does not depend on the order and yields sorted indices; neighbors of similar length need less
    # padding.
    ordered = data.pack_sequences(examples, model.max_length) if packing else data.sort_by_length(examples)
    fingerprint = _fingerprint(config, partition, _reading(config, model), num_clients, seed, partition_id)
    return ClientData(ordered, fingerprint)


def _fingerprint(
    config: DataConfig, partition: PartitionConfig, reading: _Reading, num_clients: int, seed: int, partition_id: int
) -> str:
    # Whoever starts a run chooses its limit and its seed: the ledger of a node is bound to all of its data.
    whole = replace(config, max_train_examples=None) if config.name == "node" else config
    return data.fingerprint(_load_partition(whole, partition, reading, num_clients, seed, partition_id))


@lru_cache(maxsize=2)
def _load_test_batches(config: DataConfig, model: ModelConfig, batch_size: int, seed: int) -> list[Batch]:
    tokenizer = _load_tokenizer(model.source)
    held_out = _load_data(config, seed, _reading(config, model), None).splits["test"]
    if not len(held_out):
        return []
    examples = data.encode(held_out, config, model, tokenizer)
    return list(data.eval_batches(examples, batch_size, tokenizer))

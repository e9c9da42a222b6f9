"""What both apps make of one configuration: the adapted model and the tokenised data, loaded once a process."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from weakref import WeakKeyDictionary

import peft
import torch
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PreTrainedTokenizerBase

from fedsvd import data, lora, models
from fedsvd.adapter import Adapter, Part
from fedsvd.config import Config, DataConfig, ModelConfig, PartitionConfig
from fedsvd.errors import ConfigError
from fedsvd.generation import samples
from fedsvd.initialisation import initialise
from fedsvd.methods import Method, build_method
from fedsvd.prefix import PrefixCache, Store
from fedsvd.readout import read_first_token_alone
from fedsvd.training import Batch

_NUM_SAMPLES = 5


@dataclass(frozen=True)
class Silo:
    """One client's data, tokenised.

    Attributes:
        examples: Columns ``input_ids`` and ``labels``; of pairs perhaps ``token_type_ids``, of packed sequences
            ``position_ids``.
        fingerprint: Identifies the raw text and labels; the ledger is bound to it.
        prefixes: For each model that has seen these examples, its way to what its frozen lower layers made of them.
        stores: That itself, for all models of one base and one choice of adapted layers.
    """

    examples: Dataset
    fingerprint: str
    prefixes: WeakKeyDictionary[nn.Module, PrefixCache] = field(default_factory=WeakKeyDictionary, compare=False)
    stores: dict[Hashable, Store] = field(default_factory=dict, compare=False)


def resolve_device(name: str) -> torch.device:
    """Turn ``device`` into a torch device; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: A device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device = {name!r}, but this machine has no CUDA device that torch can use; set device=auto."
        )
    return device


def client_config(config: Config, partition_id: int) -> Config:
    """Return the configuration as one client sees it: with its own rank, and the same ``lora_alpha / rank``."""
    ranks = config.federation.client_ranks
    if ranks is None or ranks[partition_id] == config.model.rank:
        return config
    rank = ranks[partition_id]
    model = replace(config.model, rank=rank, lora_alpha=config.model.lora_alpha * rank / config.model.rank)
    return replace(config, model=model, federation=replace(config.federation, client_ranks=None))


def trained_parts(method: Method, config: Config, server_round: int) -> frozenset[Part]:
    """Return what a client trains in this round: the method's factors, and the head where it is not frozen."""
    has_head = config.model.task == "sequence_classification"
    head: frozenset[Part] = frozenset({"head"}) if has_head and config.train.head == "private" else frozenset()
    return method.trains(server_round) | head


def load_model(config: Config) -> peft.PeftModel:
    """Load the base model with its LoRA sites; one per process, shared by all that run in it.

    Sets the process's precision of matrix products, too: a model is loaded to be run.
    """
    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    num_labels = len(class_names(config))
    core = build_method(config.method).traits.core
    return _load_model(config.model, num_labels, config.seed, str(resolve_device(config.device)), core)


def initial_adapter(config: Config, method: Method) -> Adapter:
    """Draw the adapter that a run starts from; server and clients draw the same one from the seed."""
    return _initial_adapter(load_model(config), config.model, config.seed, method.init_a, method.init_b)


def load_partition(config: Config, partition_id: int) -> Dataset:
    """Load one client's partition as text: columns ``text`` and ``label``. Of a node's own data, all of it."""
    return _load_partition(config.data, config.partition, config.federation.num_clients, config.seed, partition_id)


def load_silo(config: Config, partition_id: int) -> Silo:
    """Load one client's tokenised partition."""
    return _load_silo(
        config.data,
        config.partition,
        config.model,
        config.train.packing,
        config.federation.num_clients,
        config.seed,
        partition_id,
    )


def partition_counts(config: Config) -> list[dict[str, int]]:
    """Count each simulated client's examples by class; real clients' data are not here to be counted."""
    parts = _load_partitions(config.data, config.partition, config.federation.num_clients, config.seed)
    names = parts[0].features["label"].names
    return [{name: list(part["label"]).count(number) for number, name in enumerate(names)} for part in parts]


def class_names(config: Config) -> list[str]:
    """Return the names of the classes, in the order of the model's outputs."""
    return list(_load_data(config.data, config.seed)["train"].features["label"].names)


def sample_answers(config: Config) -> list[dict[str, str]]:
    """Let the process's language model, as it is, answer the first few held-out prompts."""
    test, tokenizer = _load_data(config.data, config.seed)["test"], _load_tokenizer(config.model.source)
    few = test.select(range(min(_NUM_SAMPLES, len(test))))
    return samples(load_model(config), tokenizer, few, config.data, config.model)


def load_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """Load the model's."""
    return _load_tokenizer(config.model.source)


def load_held_out(config: Config) -> Dataset:
    """Load the held-out examples as text: columns ``text`` and ``label``."""
    return _load_data(config.data, config.seed)["test"]


def load_test_batches(config: Config) -> list[Batch]:
    """Load the held-out examples as padded batches: none where nothing is held out, as with nodes' own data."""
    return _load_test_batches(config.data, config.model, config.train.eval_batch_size, config.seed)


def forget() -> None:
    """Drop the models and the data that are loaded."""
    for loader in (
        _load_model,
        _initial_adapter,
        _shapes,
        _load_data,
        _load_partitions,
        _load_silo,
        _load_test_batches,
    ):
        loader.cache_clear()


@lru_cache(maxsize=2)
def _load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    return models.load_tokenizer(source)


# Clients of different ranks have a model each, where they share a process.
@lru_cache(maxsize=4)
def _load_model(config: ModelConfig, num_labels: int, seed: int, device: str, core: bool) -> peft.PeftModel:
    loaded, head_modules = models.load_base(config, num_labels, seed)
    adapted = lora.attach(
        loaded,
        rank=config.rank,
        lora_alpha=config.lora_alpha,
        target_modules=config.target_modules,
        task=config.task,
        lora_layers=config.lora_layers,
        lora_dropout=config.lora_dropout,
        head_modules=head_modules,
        core=core,
    )
    if config.gradient_checkpointing:
        models.checkpoint_activations(loaded)
    read_first_token_alone(adapted)
    return adapted.to(device)


@lru_cache(maxsize=4)
def _initial_adapter(model: peft.PeftModel, config: ModelConfig, seed: int, init_a: str, init_b: str) -> Adapter:
    weights = lora.frozen_weights(model)
    return initialise(_shapes(model, config, seed), init_a=init_a, init_b=init_b, seed=seed, weights=weights)


# The model is shared and written to: what it held when it was loaded (the head as drawn) is kept beside it.
@lru_cache(maxsize=4)
def _shapes(model: peft.PeftModel, config: ModelConfig, seed: int) -> Adapter:
    return lora.read(model)


@lru_cache(maxsize=2)
def _load_data(config: DataConfig, seed: int, keep_column: str | None = None) -> DatasetDict:
    return data.load(config, seed, keep_column)


@lru_cache(maxsize=2)
def _load_partitions(
    config: DataConfig, partition: PartitionConfig, num_clients: int, seed: int
) -> tuple[Dataset, ...]:
    return tuple(
        data.partition(
            _load_data(config, seed, partition.column if partition.name == "by_column" else None)["train"],
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
    config: DataConfig, partition: PartitionConfig, num_clients: int, seed: int, partition_id: int
) -> Dataset:
    if config.name == "node":
        return _load_data(config, seed)["train"]
    return _load_partitions(config, partition, num_clients, seed)[partition_id]


@lru_cache(maxsize=1024)
def _load_silo(
    config: DataConfig,
    partition: PartitionConfig,
    model: ModelConfig,
    packing: bool,
    num_clients: int,
    seed: int,
    partition_id: int,
) -> Silo:
    raw = _load_partition(config, partition, num_clients, seed, partition_id)
    examples = data.encode(raw, config, model, _load_tokenizer(model.source))
    # Poisson sampling is blind to the order, and positions come out in it: neighbours of one length need less padding.
    ordered = data.packed(examples, model.max_length) if packing else data.by_length(examples)
    return Silo(ordered, data.fingerprint(raw))


@lru_cache(maxsize=2)
def _load_test_batches(config: DataConfig, model: ModelConfig, batch_size: int, seed: int) -> list[Batch]:
    tokenizer = _load_tokenizer(model.source)
    held_out = _load_data(config, seed)["test"]
    if not len(held_out):
        return []
    examples = data.encode(held_out, config, model, tokenizer)
    return list(data.eval_batches(examples, batch_size, tokenizer))

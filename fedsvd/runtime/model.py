"""The adapted model of a configuration on its device, shared by both apps and cached per process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import peft
import torch
from torch import Tensor

from fedsvd.config import Config, ModelConfig
from fedsvd.config.device import check_device
from fedsvd.errors import ConfigError, ModelError
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.lora.frozen_weights import frozen_weights
from fedsvd.lora.initialization import initialize_factors
from fedsvd.lora.site import rescaled_alpha
from fedsvd.methods import Method, build_run_method
from fedsvd.models import loading
from fedsvd.models.checkpoint_head import KeptHead
from fedsvd.models.first_token import use_first_token_only
from fedsvd.models.head_choice import HeadChoice, choose_head
from fedsvd.models.output_layer import check_output_bias
from fedsvd.models.pooled import PooledClassifier
from fedsvd.models.zero_shot import RANGE_ENDS, sentences_by_class, zero_shot_head
from fedsvd.runtime import base_model
from fedsvd.runtime.data import class_names, load_held_out, load_tokenizer
from fedsvd.runtime.public_statistics import clear_preconditioners, public_columns, public_rows
from fedsvd.runtime.round_parts import trained_parts
from fedsvd.training.generation import generate_samples
from fedsvd.training.probes import check_batch_layout, check_causal, check_packing, check_padding

_NUM_SAMPLES = 5


def resolve_device(name: str) -> torch.device:
    """Return the torch device for ``device``; ``auto`` is CUDA if available, else the CPU.

    Raises:
        ConfigError: There is no such device, fedsvd does not run on it, or the machine does not have it.
    """
    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device, found = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        count = f"only {found} CUDA devices" if found else "no CUDA device"
        raise ConfigError(f"device = {name!r} is not available: torch finds {count} on this machine. Set device=auto.")
    return device


def client_config(config: Config, partition_id: int) -> Config:
    """Return the configuration of one client, with its own rank and the same scale of B A."""
    ranks = config.federation.client_ranks
    if ranks is None or ranks[partition_id] == config.model.rank:
        return config
    rank, full = ranks[partition_id], config.model
    alpha = rescaled_alpha(full.lora_alpha, full.rank, rank, full.rslora)
    model = replace(full, rank=rank, lora_alpha=alpha)
    return replace(config, model=model, federation=replace(config.federation, client_ranks=None))


def load_model(config: Config) -> peft.PeftModel:
    """Load the base model with its LoRA sites; one instance per process, shared by all clients in it.

    Also sets the process-wide precision of float32 matrix products.
    """
    return _load(config).model


def head_choice(config: Config) -> HeadChoice:
    """Return whether the checkpoint's classification head is kept; raises as `choose_head`."""
    classes = tuple(class_names(config))
    return choose_head(config.model, classes, config.train.head_init, config.data.label_range)


def initial_adapter(config: Config, method: Method) -> Adapter:
    """Return the initial adapter of a run, which server and clients compute each for itself.

    They draw the same numbers from the seed. A zero-shot head can differ in its last digits between machines; the
    server sends the head in every round if any round trains it.

    Raises:
        ConfigError: ``data.class_descriptions`` is of other classes.
        ModelError: The model has no pooled features for a zero-shot head.
    """
    loaded = _load(config)
    head = _initial_head(config, loaded, loaded.adapter.head)
    # Only these columns depend on the head.
    used = tuple(head.items()) if method.init_b == "public_jacobian" else ()
    adapter = _initial_adapter(loaded, config.model, config.seed, method.init_a, method.init_b, used)
    return adapter.with_parts({"head": head})


def check_model(config: Config) -> None:
    """Check that the model's architecture fits the task, example-level privacy and packing.

    Raises:
        ModelError: A language model reads the tokens that it predicts, predictions depend on padding, or the head
            cannot predict numbers of ``data.label_range``.
        PrivacyError: A trained layer or a setting does not permit the per-example gradients of example-level privacy.
        ConfigError: Packed sequences are not kept apart, or ``model.max_length`` leaves no room for a text.
    """
    tokenizer, is_language_model = load_tokenizer(config), config.model.task == "causal_lm"
    special = tokenizer.num_special_tokens_to_add(pair=config.data.text_pair_column is not None)
    if config.model.max_length <= special:
        raise ConfigError(
            f"model.max_length = {config.model.max_length} leaves no room for a text: the tokenizer of "
            f"{config.model.source} adds {special} special tokens; give {special + 1} or more."
        )
    check_output_bias(load_model(config), config.model.source, config.data.label_range)
    _check_architecture(load_model(config), tokenizer.pad_token_id, is_language_model, config.train.packing)
    if config.privacy.name == "dp_sgd":
        method, numbers = build_run_method(config), range(1, config.train.rounds + 1)
        rounds = frozenset(trained_parts(method, config, number) for number in numbers)
        _check_example_gradients(load_model(config), rounds, config.train.grad_sample_mode)


def sample_answers(config: Config) -> list[dict[str, str]]:
    """Generate answers to the first held-out prompts with the process's language model in its current state."""
    held_out = load_held_out(config)
    first = held_out.select(range(min(_NUM_SAMPLES, len(held_out))))
    return generate_samples(load_model(config), load_tokenizer(config), first, config.data, config.model)


@dataclass(frozen=True, eq=False)
class _LoadedModel:
    """A model, which runs share and modify, and its adapter as it was loaded, with the head as drawn."""

    model: peft.PeftModel
    adapter: Adapter

    def restored(self, head: Mapping[str, Tensor] | None = None) -> peft.PeftModel:
        """Return the model without the factors and merged base of an earlier run, and with this head or as drawn."""
        peft_model.write(self.model, self.adapter if head is None else self.adapter.with_parts({"head": dict(head)}))
        return self.model


def clear_model_cache() -> None:
    """Clear the caches of this module."""
    for cached in (_load_model, _initial_adapter, _zero_shot_head, _check_architecture, _check_example_gradients):
        cached.cache_clear()
    clear_preconditioners()


def _load(config: Config) -> _LoadedModel:
    torch.set_float32_matmul_precision(config.float32_matmul_precision)
    num_labels, kept = len(class_names(config)), head_choice(config).kept
    core = build_run_method(config).traits.core
    return _load_model(config.model, num_labels, config.seed, str(resolve_device(config.device)), core, kept)


# Clients of different ranks that share a process need one model each.
@lru_cache(maxsize=4)
def _load_model(
    config: ModelConfig, num_labels: int, seed: int, device: str, core: bool, kept: KeptHead | None
) -> _LoadedModel:
    loaded, head_modules = base_model.load_base(config, num_labels, seed, device, kept)
    adapted = peft_model.attach(
        loaded,
        rank=config.rank,
        lora_alpha=config.lora_alpha,
        rslora=config.rslora,
        target_modules=config.target_modules,
        task=config.task,
        lora_layers=config.lora_layers,
        lora_dropout=config.lora_dropout,
        head_modules=head_modules,
        core=core,
    )
    if config.gradient_checkpointing:
        loading.checkpoint_activations(loaded)
    model = adapted if config.device_map == "auto" else adapted.to(device)
    choice = base_model.pooling_choice(config, kept is not None)
    if choice is not None and choice.pooling == "first":
        # Runs the model, so it must be on its device: flash attention does not run on a CPU.
        use_first_token_only(model)
    return _LoadedModel(model, peft_model.read(model))


@lru_cache(maxsize=4)
def _initial_adapter(
    loaded: _LoadedModel, config: ModelConfig, seed: int, init_a: str, init_b: str, head: tuple[tuple[str, Tensor], ...]
) -> Adapter:
    rows = public_rows(loaded.restored(), config) if init_a == "public_pca" else None
    columns = None
    if init_b == "public_jacobian":
        columns = public_columns(loaded.restored(dict(head)), config, dict(head))
    return initialize_factors(
        loaded.adapter,
        init_a=init_a,
        init_b=init_b,
        seed=seed,
        weights=frozen_weights(loaded.model),
        public_rows=rows,
        public_columns=columns,
    )


@lru_cache(maxsize=8)
def _check_architecture(model: peft.PeftModel, pad_token_id: int, is_language_model: bool, packing: bool) -> None:
    check_padding(model, pad_token_id)
    if is_language_model:
        check_causal(model)
    if packing:
        check_packing(model)


@lru_cache(maxsize=8)
def _check_example_gradients(model: peft.PeftModel, rounds: frozenset[frozenset[Part]], grad_sample_mode: str) -> None:
    # Loads Opacus, which runs without example-level privacy do not need.
    from fedsvd.training.per_example_gradients import check_grad_sample_mode

    check_batch_layout(model, frozenset().union(*rounds))
    for parts in rounds:
        check_grad_sample_mode(model, grad_sample_mode, parts)


def _initial_head(config: Config, loaded: _LoadedModel, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the head's initial parameters, given those that were drawn from the seed."""
    if config.train.head_init == "zero_shot" and drawn:
        # The ends of the scale of a regression are described, as two classes are.
        names = class_names(config) if config.data.label_range is None else RANGE_ENDS
        sentences = sentences_by_class(config.data.class_descriptions or {}, names)
        hashable = tuple(map(tuple, sentences))
        return _zero_shot_head(loaded, config.model.source, hashable, config.model.max_length)
    if config.train.head_init == "zeros":
        # Only the last layer: with zeros in the layers below it, no layer of the head would have a gradient.
        num_labels = len(class_names(config))
        return {name: torch.zeros_like(t) if len(t) == num_labels else t for name, t in drawn.items()}
    return dict(drawn)


@lru_cache(maxsize=4)
def _zero_shot_head(
    loaded: _LoadedModel, source: str, sentences: tuple[tuple[str, ...], ...], max_length: int
) -> dict[str, Tensor]:
    base = loaded.model.get_base_model()
    if not isinstance(base, PooledClassifier):
        raise ModelError(
            f"train.head_init = zero_shot is not possible: {source} is read by the stock classification head, which is "
            "more than one layer on pooled features. Set model.pooling=mean, or train.head_init=random."
        )
    with loaded.restored().disable_adapter():
        is_regression = len(loaded.adapter.head["classifier.bias"]) == 1
        weight, bias = zero_shot_head(base, loading.load_tokenizer(source), sentences, max_length, is_regression)
    return {"classifier.weight": weight, "classifier.bias": bias}

"""A finished run, and its model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import peft
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedsvd.config import Config, ModelConfig
from fedsvd.config.compose import read_config
from fedsvd.config.quoting import resume_command
from fedsvd.config.task import TASKS
from fedsvd.errors import ConfigError, RunError
from fedsvd.lora.pretrained import load_pretrained
from fedsvd.lora.tied import untie_output_layer
from fedsvd.methods import build_run_method
from fedsvd.models import loading
from fedsvd.models.load_options import DTYPES, load_options
from fedsvd.models.pooled_loading import load_pooled
from fedsvd.models.pooling import PoolingChoice
from fedsvd.models.standardization import Standardization
from fedsvd.runs.best_round import BestRound, read_best_round
from fedsvd.runs.folder import RunFolder, read_json
from fedsvd.runs.intact import check_documents
from fedsvd.runtime.base_model import recorded_choice
from fedsvd.runtime.model import resolve_device
from fedsvd.trained.adapter_files import check_adapter
from fedsvd.trained.dequantized import dequantize
from fedsvd.training.objectives import Labels


@dataclass(frozen=True)
class TrainedRun:
    """A finished run, read from its directory.

    Attributes:
        folder: The run directory.
        config: The configuration of the run.
        classes: Names of the classes, in the order of the model's outputs.
        adapter: Directory of the adapter.
        best: The round of the adapter, if it is that of the best round; None if it is the final one.
    """

    folder: RunFolder
    config: Config
    classes: tuple[str, ...]
    adapter: Path
    best: BestRound | None = None

    @property
    def generates_text(self) -> bool:
        """Whether the model generates text instead of predicting a class."""
        return self.config.model.task == "causal_lm"

    @property
    def labels(self) -> Labels:
        """What is known about the labels."""
        return Labels(self.classes, self.config.data.label_range)

    @cached_property
    def pooling(self) -> PoolingChoice | None:
        """The hidden states that a classifier reads; None for a causal language model."""
        record = read_json(self.folder.record) if self.folder.record.exists() else {}
        return recorded_choice(self.config.model, record.get("pooling"))


@dataclass(frozen=True)
class TrainedModel:
    """A finished run and its model.

    Attributes:
        run: The run.
        model: The base model with the run's adapter, on the device, in eval mode.
        tokenizer: The model's tokenizer.
        device: The device of the model.
    """

    run: TrainedRun
    model: peft.PeftModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device


def read_finished(folder: Path) -> tuple[RunFolder, Config]:
    """Return the files and the configuration of a finished run.

    Raises:
        ConfigError: It is not a run directory.
        RunError: The run has not finished, or a file is damaged.
    """
    paths = RunFolder(folder)
    config = read_config(paths.config)
    if not (paths.adapter / "adapter_config.json").is_file():
        raise RunError(
            f"{folder} holds no final adapter: the run has not finished. Resume it: {resume_command(folder)}"
        )
    check_documents(paths)
    return paths, config


def read_run(folder: Path, *, best: bool = False) -> TrainedRun:
    """Read the directory of a finished run.

    Args:
        folder: The run directory.
        best: Take the adapter of the best round instead of the final one.

    Raises:
        ConfigError: It is not a run directory.
        RunError: The run has no such adapter, or no single model, or a file is damaged.
    """
    paths, config = read_finished(folder)
    personal = build_run_method(config).traits.personal
    if personal:
        raise RunError(
            f"the run in {folder} has no single model: with method={config.method['name']} each client keeps its own "
            f"{', '.join(sorted(personal))}. Use another method, or the clients' personal factors."
        )
    chosen = read_best_round(paths) if best else None
    if best and chosen is None:
        raise RunError(
            f"{paths.best_adapter} holds no adapter of a best round: the run had train.keep_best=false, or nothing to "
            "evaluate on. Leave --best out to take the final adapter."
        )
    adapter = paths.best_adapter if best else paths.adapter
    check_adapter(paths, adapter)
    try:
        classes = json.loads(paths.classes.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{paths.classes} cannot be read ({error}): is {folder} a run directory?") from error
    return TrainedRun(paths, config, tuple(classes), adapter, chosen)


def load_base(
    run: TrainedRun, dtype: Literal["float32", "bfloat16"] | None = None, device: str = "cpu"
) -> PreTrainedModel:
    """Load the base model of a run, without its adapter; a head, if any, is new.

    Args:
        run: The run.
        dtype: Data type of the weights, none of which is quantized then: they are those that the run computed with.
            Default: as in the run.
        device: The device on which weights are quantized.

    Raises:
        ModelError: The model cannot be loaded.
    """
    quantization = run.config.model.quantization
    loaded_as = run.config.model.dtype if quantization != "none" or dtype is None else dtype
    # The attention implementation is no part of the model: another machine may not have that of the run.
    config = replace(run.config.model, attn_implementation="auto", device_map="none", dtype=loaded_as)
    model = _load_base(run, config, device)
    return model if quantization == "none" or dtype is None else dequantize(model, DTYPES[dtype])


def _load_base(run: TrainedRun, config: ModelConfig, device: str) -> PreTrainedModel:
    options = load_options(config, device)
    if run.generates_text:
        model = loading.load_causal_lm(config.source, options).model
        untie_output_layer(model, config.target_modules)
        return model
    seed, num_labels = run.config.seed, len(run.classes)
    if run.pooling is not None and not run.pooling.is_stock:
        return load_pooled(config, run.pooling, num_labels, seed, _standardization(run), device)
    # The adapter holds the run's head, whatever head the checkpoint has.
    kind = TASKS[config.task].auto_class
    loaded = loading.load_classifier(
        config.source, num_labels=num_labels, seed=seed, options=options, new_head=True, kind=kind
    )
    return loaded.model


def _standardization(run: TrainedRun) -> Standardization | None:
    if run.config.model.standardize == "none":
        return None
    path = run.folder.standardization
    if not path.is_file():
        raise RunError(f"{path} is missing: without it, the run's features cannot be computed. Restore the file.")
    return Standardization.load(path)


def load_trained_model(run: TrainedRun, device: str | None = None) -> TrainedModel:
    """Load a run's model.

    Args:
        run: The run.
        device: The device to load it on. Default: that of the run's configuration.

    Raises:
        ModelError: The base model cannot be loaded.
        ConfigError: The machine does not have the device.
        RunError: The adapter does not fit the model.
    """
    target = resolve_device(device or run.config.device)
    base = load_base(run, device=str(target))
    try:
        model = load_pretrained(base, run.adapter)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{run.adapter} does not fit the run's model ({reason}): the adapter or {run.folder.config} is "
            "damaged. Restore them from a copy, or resume the run to write the adapter again."
        ) from error
    return TrainedModel(run, model.to(target).eval(), loading.load_tokenizer(run.config.model.source), target)

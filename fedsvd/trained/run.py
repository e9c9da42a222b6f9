"""A finished run: load its model and predict with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedsvd import data
from fedsvd.config import Config
from fedsvd.config.compose import read_config
from fedsvd.config.quoting import resume_command
from fedsvd.data.conversations import USER, Turn, dump_conversation, load_conversation, unanswered
from fedsvd.errors import ConfigError, RunError
from fedsvd.lora.pretrained import load_pretrained
from fedsvd.lora.tied import untie_output_layer
from fedsvd.methods import build_run_method
from fedsvd.models import loading
from fedsvd.models.pooled_loading import load_pooled
from fedsvd.models.pooling import PoolingChoice
from fedsvd.models.standardization import Standardization
from fedsvd.runs.best_round import BestRound, read_best_round
from fedsvd.runs.folder import RunFolder, read_json
from fedsvd.runs.intact import check_documents
from fedsvd.runtime.base_model import recorded_choice
from fedsvd.runtime.model import resolve_device
from fedsvd.trained.adapter_files import check_adapter
from fedsvd.training.generation import generate, prompt_limit
from fedsvd.training.loop import model_inputs, to_device


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


def read_run(folder: Path, *, best: bool = False) -> TrainedRun:
    """Read the directory of a finished run.

    Args:
        folder: The run directory.
        best: Take the adapter of the best round instead of the final one.

    Raises:
        ConfigError: It is not a run directory.
        RunError: The run has no such adapter, or no single model, or a file is damaged.
    """
    paths = RunFolder(folder)
    config = read_config(paths.config)
    if not (paths.adapter / "adapter_config.json").is_file():
        raise RunError(
            f"{folder} holds no final adapter: the run has not finished. Resume it: {resume_command(folder)}"
        )
    personal = build_run_method(config).traits.personal
    if personal:
        raise RunError(
            f"the run in {folder} has no single model: with method={config.method['name']} each client keeps its own "
            f"{', '.join(sorted(personal))}. Use another method, or the clients' personal factors."
        )
    check_documents(paths)
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


def load_base(run: TrainedRun, dtype: Literal["float32", "bfloat16"] | None = None) -> PreTrainedModel:
    """Load the base model of a run, without its adapter; a head, if any, is new.

    Args:
        run: The run.
        dtype: Data type of the weights. Default: that of the run.

    Raises:
        ModelError: The model cannot be loaded.
    """
    # The implementation is no part of the model: another machine may not have that of the run.
    options = {"attn_implementation": "auto", "dtype": dtype or run.config.model.dtype}
    if run.generates_text:
        model = loading.load_causal_lm(run.config.model.source, **options).model
        untie_output_layer(model, run.config.model.target_modules)
        return model
    seed, num_labels = run.config.seed, len(run.classes)
    if run.pooling is not None and not run.pooling.is_stock:
        config = replace(run.config.model, attn_implementation="auto", dtype=dtype or run.config.model.dtype)
        return load_pooled(config, run.pooling, num_labels, seed, _standardization(run))
    # The adapter holds the run's head, whatever head the checkpoint has.
    source = run.config.model.source
    return loading.load_classifier(source, num_labels=num_labels, seed=seed, new_head=True, **options).model


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
    base = load_base(run)
    try:
        model = load_pretrained(base, run.adapter)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{run.adapter} does not fit the run's model ({reason}): the adapter or {run.folder.config} is "
            "damaged. Restore them from a copy, or resume the run to write the adapter again."
        ) from error
    return TrainedModel(run, model.to(target).eval(), loading.load_tokenizer(run.config.model.source), target)


def predict(
    loaded: TrainedModel,
    texts: Sequence[str] | Sequence[Sequence[Turn]],
    pairs: Sequence[str] | None = None,
    batch_size: int = 32,
) -> Iterator[dict[str, Any]]:
    """Yield for each text its class and the probabilities of all classes, or the generated answer.

    Args:
        loaded: The model.
        texts: The texts. For a model trained on conversations, a text is a turn of the user, and texts can be
            conversations (lists of turns with ``role`` and ``content``): if one ends with an assistant turn, this turn
            is generated anew.
        pairs: The second text of each pair, for a model trained on text pairs.
        batch_size: Number of texts per forward pass.

    Raises:
        DataError: The chat template cannot render a conversation.
    """
    if loaded.run.config.data.row_format == "messages":
        rows = unanswered_dataset(texts)
    else:
        rows = unlabeled_dataset(list(map(str, texts)), pairs, loaded.run.classes)
    for start in range(0, len(rows), batch_size):
        batch = rows.select(range(start, min(start + batch_size, len(rows))))
        yield from _generate(loaded, batch) if loaded.run.generates_text else _classify(loaded, batch)


def unlabeled_dataset(texts: Sequence[str], pairs: Sequence[str] | None, classes: Sequence[str]) -> Dataset:
    """Return unlabeled texts as a data set; all labels are 0 and have no meaning."""
    columns: dict[str, list[Any]] = {"text": list(texts), **({} if pairs is None else {"text_pair": list(pairs)})}
    label = ClassLabel(names=list(classes))
    return Dataset.from_dict(columns).add_column("label", [0] * len(texts), feature=label)


def unanswered_dataset(conversations: Sequence[str] | Sequence[Sequence[Turn]]) -> Dataset:
    """Return conversations, up to the turn before a last one of the assistant, as a data set."""
    rows = [[{"role": USER, "content": item}] if isinstance(item, str) else list(item) for item in conversations]
    return Dataset.from_dict({"messages": [dump_conversation(unanswered(turns)) for turns in rows]})


@torch.inference_mode()
def class_logits(loaded: TrainedModel, rows: Dataset) -> Tensor:
    """Return the class logits of each row, shape (rows, classes), float32 on the CPU."""
    examples = data.tokenize(rows, loaded.tokenizer, loaded.run.config.model.max_length)
    batch = to_device(data.collate(list(examples), loaded.tokenizer), loaded.device)
    logits: Tensor = loaded.model(**model_inputs(batch)).logits
    return logits.float().cpu()


def _classify(loaded: TrainedModel, rows: Dataset) -> Iterator[dict[str, Any]]:
    for row, probabilities in zip(_texts(rows), class_logits(loaded, rows).softmax(-1), strict=True):
        best = int(probabilities.argmax())
        yield {
            **row,
            "label": loaded.run.classes[best],
            "probability": probabilities[best].item(),
            "probabilities": dict(zip(loaded.run.classes, probabilities.tolist(), strict=True)),
        }


def _generate(loaded: TrainedModel, rows: Dataset) -> Iterator[dict[str, Any]]:
    config, tokenizer = loaded.run.config, loaded.tokenizer
    limit = prompt_limit(loaded.model, config.model.max_length)
    prompts = [prompt.ids for prompt in data.build_prompts(rows, config.data, config.model, tokenizer, limit)]
    answers = generate(loaded.model, tokenizer, prompts, stop_tokens=data.stop_tokens(config.data, tokenizer))
    for row, answer in zip(_texts(rows), answers, strict=True):
        yield {**row, "answer": answer}


def _texts(rows: Dataset) -> Iterator[Mapping[str, Any]]:
    """Yield the text columns of each row, or its conversation."""
    if "messages" in rows.column_names:
        yield from ({"messages": load_conversation(text)} for text in rows["messages"])
        return
    names = [name for name in ("text", "text_pair") if name in rows.column_names]
    for row in rows:
        yield {name: row[name] for name in names}

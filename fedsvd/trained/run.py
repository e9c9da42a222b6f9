"""A run that is over: its model, and what it says of texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedsvd import data
from fedsvd.config import Config
from fedsvd.config.compose import read_config
from fedsvd.errors import ConfigError, RunError
from fedsvd.methods import build_method
from fedsvd.models import loading
from fedsvd.runs.folder import RunFolder
from fedsvd.runtime.model import resolve_device
from fedsvd.training.generation import generate
from fedsvd.training.loop import model_inputs, to_device


@dataclass(frozen=True)
class TrainedRun:
    """A run's folder, read.

    Attributes:
        folder: Where it lies.
        config: What ran.
        classes: Names of the classes, in the order of the model's outputs.
    """

    folder: RunFolder
    config: Config
    classes: tuple[str, ...]

    @property
    def answers(self) -> bool:
        """Whether the model answers in words of its own, rather than by a class."""
        return self.config.model.task == "causal_lm"


@dataclass(frozen=True)
class TrainedModel:
    """A run with its model.

    Attributes:
        run: The run.
        model: The base model with the run's final adapter, on the device, in eval mode.
        tokenizer: Its tokenizer.
        device: Where it runs.
    """

    run: TrainedRun
    model: peft.PeftModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device


def read_run(folder: Path) -> TrainedRun:
    """Read the folder of a run that came to its end.

    Raises:
        ConfigError: It is no run's folder.
        RunError: The run has left no final adapter, or there is no one model.
    """
    paths = RunFolder(folder)
    config = read_config(paths.config)
    if not (paths.adapter / "adapter_config.json").is_file():
        raise RunError(
            f"{folder} holds no final adapter: its run has not come to its end. Let it: fedsvd train resume={folder}."
        )
    personal = build_method(config.method).traits.personal
    if personal:
        raise RunError(
            f"the run in {folder} has no one model: with method={config.method['name']} each client keeps its own "
            f"{', '.join(sorted(personal))}. Take another method, or use the clients' own files."
        )
    try:
        classes = json.loads(paths.classes.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{paths.classes} cannot be read ({error}): is {folder} the folder of a run?") from error
    return TrainedRun(paths, config, tuple(classes))


def load_base(run: TrainedRun, dtype: str | None = None) -> PreTrainedModel:
    """Load the base model of a run, its head (if it has one) still as it was drawn.

    Raises:
        ModelError: It cannot be loaded.
    """
    how = {"attn_implementation": "sdpa", "dtype": dtype or run.config.model.dtype}
    if run.answers:
        return loading.load_causal_lm(run.config.model.source, **how).model
    seed, labels = run.config.seed, len(run.classes)
    return loading.load_classifier(run.config.model.source, num_labels=labels, seed=seed, **how).model


def load_trained_model(run: TrainedRun, device: str | None = None) -> TrainedModel:
    """Load a run's final model.

    Args:
        run: The run.
        device: Where to; by default where it ran.

    Raises:
        ModelError: The base model cannot be loaded.
        ConfigError: A device that this machine does not have.
    """
    where = resolve_device(device or run.config.device)
    model = peft.PeftModel.from_pretrained(load_base(run), str(run.folder.adapter))
    return TrainedModel(run, model.to(where).eval(), loading.load_tokenizer(run.config.model.source), where)


def predict(
    loaded: TrainedModel, texts: Sequence[str], pairs: Sequence[str] | None = None, batch_size: int = 32
) -> Iterator[dict[str, Any]]:
    """Yield for each text its class with all classes' probabilities, or the model's answer.

    Args:
        loaded: The model.
        texts: The texts.
        pairs: The second text of each, for a model of pairs.
        batch_size: Texts at once.
    """
    rows = unlabeled_dataset(texts, pairs, loaded.run.classes)
    for start in range(0, len(rows), batch_size):
        part = rows.select(range(start, min(start + batch_size, len(rows))))
        yield from _answer(loaded, part) if loaded.run.answers else _classify(loaded, part)


def unlabeled_dataset(texts: Sequence[str], pairs: Sequence[str] | None, classes: Sequence[str]) -> Dataset:
    """Return texts without classes as rows of a data set; the class is filled in and means nothing."""
    columns: dict[str, list[Any]] = {"text": list(texts), **({} if pairs is None else {"text_pair": list(pairs)})}
    label = ClassLabel(names=list(classes))
    return Dataset.from_dict(columns).add_column("label", [0] * len(texts), feature=label)


@torch.inference_mode()
def class_logits(loaded: TrainedModel, rows: Dataset) -> Tensor:
    """Return each row's logits, shape (rows, classes), float32 on the CPU."""
    examples = data.tokenize(rows, loaded.tokenizer, loaded.run.config.model.max_length)
    batch = to_device(data.collate(list(examples), loaded.tokenizer), loaded.device)
    logits: Tensor = loaded.model(**model_inputs(batch)).logits
    return logits.float().cpu()


def _classify(loaded: TrainedModel, rows: Dataset) -> Iterator[dict[str, Any]]:
    chances = class_logits(loaded, rows).softmax(-1)
    for row, chance in zip(_texts(rows), chances, strict=True):
        best = int(chance.argmax())
        named = dict(zip(loaded.run.classes, chance.tolist(), strict=True))
        yield {**row, "label": loaded.run.classes[best], "probability": chance[best].item(), "probabilities": named}


def _answer(loaded: TrainedModel, rows: Dataset) -> Iterator[dict[str, Any]]:
    how = loaded.run.config.model
    texts = data.build_instructions(rows, loaded.run.config.data, loaded.tokenizer, how.chat_template)
    prompts = [data.prompt_ids(text, loaded.tokenizer, how.max_length, how.chat_template) for text in texts]
    for row, answer in zip(_texts(rows), generate(loaded.model, loaded.tokenizer, prompts), strict=True):
        yield {**row, "answer": answer}


def _texts(rows: Dataset) -> Iterator[Mapping[str, Any]]:
    names = [name for name in ("text", "text_pair") if name in rows.column_names]
    for row in rows:
        yield {name: row[name] for name in names}

"""How good a finished run's model is on labelled texts, also such as it has never met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import ClassLabel, Dataset, concatenate_datasets
from torch.nn import functional

from fedsvd import data
from fedsvd.config import Config
from fedsvd.errors import DataError
from fedsvd.trained.run import TrainedModel, class_logits
from fedsvd.training.loop import evaluate


@dataclass(frozen=True)
class ClassScore:
    """One class: how many texts are of it, and precision and recall; nan where there is nothing to divide by."""

    name: str
    num_examples: int
    precision: float
    recall: float


@dataclass(frozen=True)
class EvaluationResult:
    """What was found.

    Attributes:
        num_examples: Texts.
        accuracy: Share of right classes; of a language model of answers that are right token for token.
        loss: Mean cross-entropy; of a language model per token of the answers.
        perplexity: Of a language model: the exponential of ``loss``; None of a classifier.
        classes: Of a classifier, each class; empty of a language model.
    """

    num_examples: int
    accuracy: float
    loss: float
    perplexity: float | None
    classes: tuple[ClassScore, ...]


def load_labeled_texts(config: Config, everything: bool) -> Dataset:
    """Load labelled texts: what ``data`` holds out, or all of it.

    Raises:
        DataError: As `fedsvd.data.load`.
    """
    sides = data.load(config.data, config.seed)
    return concatenate_datasets([sides["train"], sides["test"]]) if everything else sides["test"]


def evaluate_trained_model(loaded: TrainedModel, rows: Dataset, config: Config) -> EvaluationResult:
    """Measure a model.

    Args:
        loaded: The model.
        rows: As `fedsvd.data.load` gives them.
        config: Says how to put rows before a language model, and how many at once.

    Raises:
        DataError: Classes that the model does not know.
    """
    size = config.train.eval_batch_size
    if loaded.run.answers:
        examples = data.encode(rows, config.data, loaded.run.config.model, loaded.tokenizer)
        found = evaluate(loaded.model, data.eval_batches(examples, size, loaded.tokenizer), loaded.device)
        return EvaluationResult(found.num_examples, found.accuracy, found.loss, math.exp(found.loss), ())
    known = _in_known_classes(rows, loaded.run.classes)
    parts = (known.select(range(start, min(start + size, len(known)))) for start in range(0, len(known), size))
    logits = torch.cat([class_logits(loaded, part) for part in parts])
    labels = torch.tensor(known["label"])
    right = (logits.argmax(-1) == labels).double().mean().item()
    scores = tuple(_score(name, i, logits.argmax(-1), labels) for i, name in enumerate(loaded.run.classes))
    return EvaluationResult(len(known), right, functional.cross_entropy(logits, labels).item(), None, scores)


def _score(name: str, number: int, guesses: torch.Tensor, labels: torch.Tensor) -> ClassScore:
    hits = int(((guesses == number) & (labels == number)).sum())
    guessed, there = int((guesses == number).sum()), int((labels == number).sum())
    return ClassScore(name, there, hits / guessed if guessed else math.nan, hits / there if there else math.nan)


def _in_known_classes(rows: Dataset, classes: Sequence[str]) -> Dataset:
    """Number the rows' classes as the model does."""
    names = rows.features["label"].names
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise DataError(
            f"the data have the classes {', '.join(names[:20])}; the model knows {', '.join(classes[:20])}. Take data "
            "of the same classes, named alike, or rename them."
        )
    numbers = [classes.index(names[label]) for label in rows["label"]]
    return rows.remove_columns("label").add_column("label", numbers, feature=ClassLabel(names=list(classes)))

"""Evaluation of a finished run's model on labeled texts, from the run's own data or other data."""

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
    """The scores of one class.

    Attributes:
        name: The class.
        num_examples: Number of texts of the class.
        precision: NaN if no text was assigned to the class.
        recall: NaN if no text is of the class.
    """

    name: str
    num_examples: int
    precision: float
    recall: float


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation.

    Attributes:
        num_examples: Number of texts.
        accuracy: Fraction of texts classified correctly; for a language model, fraction of answers that are correct
            token for token.
        loss: Mean cross-entropy per text; for a language model, per token of the answers.
        perplexity: Exponential of ``loss`` for a language model; None for a classifier.
        classes: Scores of each class for a classifier; empty for a language model.
    """

    num_examples: int
    accuracy: float
    loss: float
    perplexity: float | None
    classes: tuple[ClassScore, ...]


def load_labeled_texts(config: Config, everything: bool) -> Dataset:
    """Load labeled texts.

    Args:
        config: The configuration whose ``data`` group is loaded.
        everything: Return all examples, not only the held-out set.

    Raises:
        DataError: See `fedsvd.data.load`.
    """
    splits = data.load(config.data, config.seed)
    return concatenate_datasets([splits["train"], splits["test"]]) if everything else splits["test"]


def evaluate_trained_model(loaded: TrainedModel, rows: Dataset, config: Config) -> EvaluationResult:
    """Evaluate a trained model.

    Args:
        loaded: The model.
        rows: Labeled texts as `fedsvd.data.load` returns them.
        config: Defines the prompts of a language model, and the batch size.

    Raises:
        DataError: The rows have classes that the model does not know.
    """
    size = config.train.eval_batch_size
    if loaded.run.generates_text:
        examples = data.encode(rows, config.data, loaded.run.config.model, loaded.tokenizer)
        result = evaluate(loaded.model, data.eval_batches(examples, size, loaded.tokenizer), loaded.device)
        return EvaluationResult(result.num_examples, result.accuracy, result.loss, math.exp(result.loss), ())
    relabeled = _to_model_labels(rows, loaded.run.classes)
    starts = range(0, len(relabeled), size)
    batches = (relabeled.select(range(start, min(start + size, len(relabeled)))) for start in starts)
    logits = torch.cat([class_logits(loaded, batch) for batch in batches])
    labels = torch.tensor(relabeled["label"])
    accuracy = (logits.argmax(-1) == labels).double().mean().item()
    scores = tuple(_score(name, i, logits.argmax(-1), labels) for i, name in enumerate(loaded.run.classes))
    return EvaluationResult(len(relabeled), accuracy, functional.cross_entropy(logits, labels).item(), None, scores)


def _score(name: str, index: int, predictions: torch.Tensor, labels: torch.Tensor) -> ClassScore:
    correct = int(((predictions == index) & (labels == index)).sum())
    predicted, actual = int((predictions == index).sum()), int((labels == index).sum())
    precision = correct / predicted if predicted else math.nan
    return ClassScore(name, actual, precision, correct / actual if actual else math.nan)


def _to_model_labels(rows: Dataset, classes: Sequence[str]) -> Dataset:
    """Map the rows' labels, by class name, to the indices that the model uses."""
    names = rows.features["label"].names
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise DataError(
            f"the data have the classes {', '.join(names[:20])}, but the model knows {', '.join(classes[:20])}. Choose "
            "data with the same class names, or rename the classes."
        )
    numbers = [classes.index(names[label]) for label in rows["label"]]
    return rows.remove_columns("label").add_column("label", numbers, feature=ClassLabel(names=list(classes)))

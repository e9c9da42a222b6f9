"""Evaluation of a finished run's model on labeled texts, from the run's own data or other data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.nn import functional

from fedsvd import data
from fedsvd.config import Config
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


def evaluate_trained_model(loaded: TrainedModel, rows: Dataset, config: Config) -> EvaluationResult:
    """Evaluate a trained model.

    Args:
        loaded: The model.
        rows: Labeled texts as `fedsvd.data.labeled` loads them: ``label`` is the position in the model's classes.
        config: Defines the prompts of a language model, and the batch size.
    """
    size = config.train.eval_batch_size
    if loaded.run.generates_text:
        examples = data.encode(rows, config.data, loaded.run.config.model, loaded.tokenizer)
        result = evaluate(loaded.model, data.eval_batches(examples, size, loaded.tokenizer), loaded.device)
        return EvaluationResult(result.num_examples, result.accuracy, result.loss, _exp(result.loss), ())
    starts = range(0, len(rows), size)
    batches = (rows.select(range(start, min(start + size, len(rows)))) for start in starts)
    logits = torch.cat([class_logits(loaded, batch) for batch in batches])
    labels = torch.tensor(rows["label"])
    accuracy = (logits.argmax(-1) == labels).double().mean().item()
    scores = tuple(_score(name, i, logits.argmax(-1), labels) for i, name in enumerate(loaded.run.classes))
    return EvaluationResult(len(rows), accuracy, functional.cross_entropy(logits, labels).item(), None, scores)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _score(name: str, index: int, predictions: torch.Tensor, labels: torch.Tensor) -> ClassScore:
    correct = int(((predictions == index) & (labels == index)).sum())
    predicted, actual = int((predictions == index).sum()), int((labels == index).sum())
    precision = correct / predicted if predicted else math.nan
    return ClassScore(name, actual, precision, correct / actual if actual else math.nan)

"""Evaluation of a finished run's model on labeled texts, from the run's own data or other data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from datasets import Dataset

from fedsvd import data
from fedsvd.config import Config
from fedsvd.trained.run import TrainedModel
from fedsvd.training.evaluation import evaluate
from fedsvd.training.objectives import make_objective


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
        metrics: All metrics by key; see `fedsvd.config.task.TASKS`.
    """

    num_examples: int
    accuracy: float | None
    loss: float
    perplexity: float | None
    classes: tuple[ClassScore, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)


def evaluate_trained_model(loaded: TrainedModel, rows: Dataset, config: Config) -> EvaluationResult:
    """Evaluate a trained model.

    Args:
        loaded: The model.
        rows: Labeled texts as `fedsvd.data.labeled` loads them: ``label`` is the position in the model's classes.
        config: Defines the prompts of a language model, and the batch size.
    """
    model = loaded.run.config.model
    if loaded.run.config.data.row_format == "messages" and config.data.row_format == "answers":
        # A prompt is the first turn of a conversation.
        model = replace(model, chat_template=True)
    examples = data.encode(rows, config.data, model, loaded.tokenizer)
    batches = data.eval_batches(examples, config.train.eval_batch_size, loaded.tokenizer)
    task = config.data.task_name(model.task)
    result = evaluate(loaded.model, batches, loaded.device, make_objective(task))
    if loaded.run.generates_text:
        return EvaluationResult(
            result.num_examples, result.accuracy, result.loss, _exp(result.loss), (), result.metrics
        )
    predicted, labels = torch.cat(result.predictions).argmax(-1), torch.cat(result.labels)
    scores = tuple(_score(name, i, predicted, labels) for i, name in enumerate(loaded.run.classes))
    return EvaluationResult(result.num_examples, result.accuracy, result.loss, None, scores, result.metrics)


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

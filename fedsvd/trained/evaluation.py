"""Evaluation of a finished run's model on labeled texts, from the run's own data or other data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from datasets import Dataset
from torch import Tensor

from fedsvd import data
from fedsvd.config import Config
from fedsvd.trained.outputs import OUTPUTS
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
        accuracy: Fraction of texts all of whose classes are right; for a language model, fraction of answers that are
            correct token for token; None for a regression.
        loss: Mean loss per text; for a language model, per token of the answers.
        perplexity: Exponential of ``loss`` for a language model; None for a classifier.
        classes: Scores of each class for a classifier; empty for other models.
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
    result = evaluate(loaded.model, batches, loaded.device, make_objective(task, loaded.run.labels))
    perplexity = _exp(result.loss) if loaded.run.generates_text else None
    scores: tuple[ClassScore, ...] = ()
    if masks := OUTPUTS[task].classes if task in OUTPUTS else None:
        predicted, actual = masks(torch.cat(result.predictions), torch.cat(result.labels))
        scores = tuple(_score(name, predicted[:, i], actual[:, i]) for i, name in enumerate(loaded.run.classes))
    return EvaluationResult(result.num_examples, result.accuracy, result.loss, perplexity, scores, result.metrics)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _score(name: str, predicted: Tensor, actual: Tensor) -> ClassScore:
    """Return the scores of a class, given masks of the texts that are assigned to it and that are of it."""
    correct, assigned, total = int((predicted & actual).sum()), int(predicted.sum()), int(actual.sum())
    return ClassScore(name, total, correct / assigned if assigned else math.nan, correct / total if total else math.nan)

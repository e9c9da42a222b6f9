"""The objective of each task: the loss of an example, and the metrics of a held-out set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsvd.config.task import PLAIN_TEXT
from fedsvd.data.instructions import IGNORED
from fedsvd.training.causal_lm import AnswerScores, score_answers
from fedsvd.training.loop import Batch, model_inputs
from fedsvd.training.metrics import class_metrics, label_metrics, span_metrics, value_metrics


@dataclass(frozen=True)
class Outputs:
    """What the model predicts for the examples of a batch, and what would be right.

    Attributes:
        losses: The losses whose mean over the held-out set is reported, in one dimension.
        predictions: One row per example; what a row is depends on the task.
        labels: One row per example.
    """

    losses: Tensor
    predictions: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Objective:
    """What the model of a task is trained for.

    Attributes:
        losses: Function from a model and a batch to the loss of each example, shape (batch,), float32.
        outputs: Function from a model and a batch to what the metrics are computed from.
        metrics: Function from the predictions and labels of all batches to metrics by key; see
            `fedsvd.config.task.TASKS`.
    """

    losses: Callable[[nn.Module, Batch], Tensor]
    outputs: Callable[[nn.Module, Batch], Outputs]
    metrics: Callable[[Sequence[Tensor], Sequence[Tensor]], dict[str, float]]


@dataclass(frozen=True)
class Labels:
    """What is known about the labels of a run.

    Attributes:
        classes: Names of the classes, in the order of the model's outputs.
        label_range: ``data.label_range``, in whose units the errors of a regression are.
        class_weights: For ``sequence_classification``: the weight of an example of each class, in the order of the
            classes; None: all are 1.
    """

    classes: Sequence[str] = ()
    label_range: tuple[float, float] | None = None
    class_weights: Sequence[float] | None = None


def make_objective(task: str, labels: Labels | None = None) -> Objective:
    """Return the objective of a task, one of `fedsvd.config.task.TASKS`."""
    return _OBJECTIVES[task](labels or Labels())


def _on_logits(
    losses: Callable[[Tensor, Tensor], Tensor], metrics: Callable[[Tensor, Tensor], dict[str, float]]
) -> Objective:
    """Return the objective of a task whose loss and metrics are functions of logits and labels, one row per example."""

    def outputs(model: nn.Module, batch: Batch) -> Outputs:
        logits = model(**model_inputs(batch)).logits.float()
        return Outputs(losses(logits, batch["labels"]), logits, batch["labels"])

    return Objective(
        lambda model, batch: outputs(model, batch).losses,
        outputs,
        lambda logits, labels: metrics(torch.cat([*logits]), torch.cat([*labels])),
    )


def _weighted(objective: Objective, class_weights: Sequence[float] | None) -> Objective:
    """Multiply the loss of each example by the weight of its class in training; an evaluation is not weighted."""
    if class_weights is None:
        return objective
    weights = torch.tensor(class_weights)

    def example_losses(model: nn.Module, batch: Batch) -> Tensor:
        losses = objective.losses(model, batch)
        return losses * weights.to(losses)[batch["labels"]]

    return replace(objective, losses=example_losses)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over classes."""
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)


def _squared_error(predictions: Tensor, labels: Tensor) -> Tensor:
    return (predictions[:, 0] - labels).square()


def _tag_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the words of each text; 0 for a text without a word that has a token."""
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return losses.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


def _tags(labels: Labels) -> Objective:
    """Return the objective of token classification."""
    on_logits = _on_logits(_tag_losses, lambda logits, labels: {})

    def tags(numbers: Sequence[Tensor], right: Sequence[Tensor]) -> list[list[str]]:
        """Return the tags of the words of each text."""
        rows = [
            row[kept != IGNORED] for batch in zip(numbers, right, strict=True) for row, kept in zip(*batch, strict=True)
        ]
        return [[labels.classes[number] for number in row.tolist()] for row in rows]

    def metrics(logits: Sequence[Tensor], right: Sequence[Tensor]) -> dict[str, float]:
        return span_metrics(tags([batch.argmax(-1) for batch in logits], right), tags(right, right))

    return replace(on_logits, metrics=metrics)


def _answer_losses(model: nn.Module, batch: Batch) -> Tensor:
    return score_answers(model, model_inputs(batch), batch["labels"]).means


def _language_model(count: Callable[[AnswerScores], tuple[Tensor, Tensor]]) -> Objective:
    """Return the objective of a language model.

    Args:
        count: Function from the scores of a batch to what is right in each example, and what could be; their ratio over
            the held-out set is the accuracy.
    """

    def outputs(model: nn.Module, batch: Batch) -> Outputs:
        """Return the loss of each learned token, and what is counted."""
        scores = score_answers(model, model_inputs(batch), batch["labels"])
        within = torch.arange(scores.losses.shape[1], device=scores.losses.device) < scores.counts.unsqueeze(1)
        return Outputs(scores.losses[within], *count(scores))

    return Objective(_answer_losses, outputs, _share)


def _share(right: Sequence[Tensor], possible: Sequence[Tensor]) -> dict[str, float]:
    return {"accuracy": sum(int(row.sum()) for row in right) / sum(int(row.sum()) for row in possible)}


def _value_metrics(labels: Labels) -> Callable[[Tensor, Tensor], dict[str, float]]:
    low, high = labels.label_range or (0.0, 1.0)
    return partial(value_metrics, scale=high - low)


_OBJECTIVES: Mapping[str, Callable[[Labels], Objective]] = {
    "sequence_classification": lambda labels: _weighted(
        _on_logits(_cross_entropy, class_metrics), labels.class_weights
    ),
    "multi_label_classification": lambda labels: _on_logits(_binary_cross_entropy, label_metrics),
    "token_classification": _tags,
    "regression": lambda labels: _on_logits(_squared_error, _value_metrics(labels)),
    # Answers that greedy decoding reproduces token for token, and tokens that are the most likely ones.
    "causal_lm": lambda labels: _language_model(lambda scores: (scores.exact, torch.ones_like(scores.exact))),
    PLAIN_TEXT: lambda labels: _language_model(lambda scores: (scores.correct.sum(1), scores.counts)),
}

"""The tasks of ``model.task``: what they are called in libraries, and the metrics of a held-out set.

A task is one row of `TASKS`; a language model has two, by the format of its data. What a task does is in one table per
package, by the name of the task: its loss and its metrics in `fedsvd.training.objectives`, its labels in
`fedsvd.data.targets` and `fedsvd.data.batches`, and what its model predicts in `fedsvd.trained.outputs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A metric of a held-out set.

    Attributes:
        key: Its key in a row of ``metrics.jsonl``.
        label: Its name for people.
        is_share: Whether it is a share of examples, which is written in percent.
        bounds: Its smallest and its largest possible value.
    """

    key: str
    label: str
    is_share: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def title(self) -> str:
        """The label with a capital, as in headings."""
        return self.label[0].upper() + self.label[1:]

    def format(self, value: float | None) -> str:
        """Return the value for people; a dash for None."""
        if value is None:
            return "–"
        return f"{value:.1%}" if self.is_share else f"{value:.3f}"


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        auto_class: The class of transformers that loads its models, without the prefix ``AutoModelFor``.
        pipeline: Its name on model hubs.
        metrics: The metrics of a held-out set, the first of which runs are compared by: the larger, the better. A
            metric that is undefined on a held-out set, such as AUROC without examples of a class, is left out.
        has_head: Whether its models have a head, which can be trained and sent.
        reads_tokens: Whether its models have an output for each token, so that no pooling of tokens applies.
        problem_type: The value in the configuration of an exported model; None: that of the checkpoint.
    """

    auto_class: str
    pipeline: str
    metrics: tuple[Metric, ...]
    has_head: bool = True
    reads_tokens: bool = False
    problem_type: str | None = None


ACCURACY, _EXACT_MATCH = Metric("accuracy", "accuracy"), Metric("accuracy", "exact match")
_SUBSET_ACCURACY, _TOKEN_ACCURACY = Metric("accuracy", "subset accuracy"), Metric("accuracy", "token accuracy")
_MACRO_F1, _AUROC = Metric("macro_f1", "macro-F1", is_share=False), Metric("auroc", "AUROC", is_share=False)
_MICRO_F1 = Metric("micro_f1", "micro-F1", is_share=False)
_RMSE = Metric("rmse", "RMSE", is_share=False, bounds=(0.0, math.inf))
_SPEARMAN = Metric("spearman", "Spearman", is_share=False, bounds=(-1.0, 1.0))
_PEARSON = Metric("pearson", "Pearson", is_share=False, bounds=(-1.0, 1.0))

_SPAN_F1, _SPAN_RECALL = Metric("span_f1", "span-F1", is_share=False), Metric("span_recall", "span recall")
_SPAN_PRECISION = Metric("span_precision", "span precision")

# The only output of a model that predicts a number, in the place of a class.
VALUE = "value"
PLAIN_TEXT = "plain_text"
# Columns with what a language model learns, and their values where earlier versions had no such key.
_ANSWER_COLUMNS = {"label": "label", "response": None, "messages": None}
TASKS: Mapping[str, Task] = {
    "sequence_classification": Task("SequenceClassification", "text-classification", (ACCURACY, _MACRO_F1, _AUROC)),
    "multi_label_classification": Task(
        "SequenceClassification",
        "text-classification",
        (_MACRO_F1, _MICRO_F1, _AUROC, _SUBSET_ACCURACY),
        problem_type="multi_label_classification",
    ),
    "token_classification": Task(
        "TokenClassification",
        "token-classification",
        (_SPAN_F1, _SPAN_PRECISION, _SPAN_RECALL, _TOKEN_ACCURACY),
        reads_tokens=True,
    ),
    "regression": Task(
        "SequenceClassification", "text-classification", (_SPEARMAN, _PEARSON, _RMSE), problem_type="regression"
    ),
    "causal_lm": Task("CausalLM", "text-generation", (_EXACT_MATCH,), has_head=False, reads_tokens=True),
    # A language model that learns every token of a text, which has no answer to match.
    PLAIN_TEXT: Task("CausalLM", "text-generation", (_TOKEN_ACCURACY,), has_head=False, reads_tokens=True),
}

# The metrics of all tasks, by key.
METRICS_BY_KEY: Mapping[str, Metric] = {metric.key: metric for task in TASKS.values() for metric in task.metrics}

# Tasks with one prediction per text: one of several classes, or a number.
ONE_PREDICTION_TASKS = ("sequence_classification", "regression")


def task_name(config: Mapping[str, Any]) -> str:
    """Return the name of a run's task, a key of `TASKS`: ``model.task``, or `PLAIN_TEXT`.

    Args:
        config: Configuration values by dotted key; earlier versions lack some of them.
    """
    columns = [config.get(f"data.{name}_column", default) for name, default in _ANSWER_COLUMNS.items()]
    name = str(config.get("model.task", "sequence_classification"))
    return PLAIN_TEXT if name == "causal_lm" and columns == [None, None, None] else name


def score_metric(config: Mapping[str, Any]) -> Metric:
    """Return the metric by which runs are compared; see `task_name`."""
    return TASKS[task_name(config)].metrics[0]


def last_value(rows: Iterable[Mapping[str, Any]], metric: Metric) -> float | None:
    """Return a metric in the last evaluated row of ``metrics.jsonl``; None if it is undefined there.

    An earlier value would be that of another model, such as that before training.
    """
    evaluated = [row.get(metric.key) for row in rows if any(row.get(key) is not None for key in ("loss", metric.key))]
    return float(evaluated[-1]) if evaluated and evaluated[-1] is not None else None

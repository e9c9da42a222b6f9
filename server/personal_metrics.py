"""Metrics of the clients' personalized models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedsvd.wire.train_messages import ClientReport


def mean_personal_metrics(reports: Iterable[ClientReport]) -> dict[str, float | None]:
    """Return the unweighted mean of the clients' accuracy and loss; empty if no client evaluated its model.

    The accuracy of a regression is None.
    """
    evaluated = [report for report in reports if report.loss is not None]
    if not evaluated:
        return {}
    columns = {"accuracy": [r.accuracy for r in evaluated], "loss": [r.loss for r in evaluated]}
    return {name: _mean([value for value in values if value is not None]) for name, values in columns.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

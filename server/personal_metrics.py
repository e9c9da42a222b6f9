"""Metrics of the clients' personalized models."""

from __future__ import annotations

from collections.abc import Iterable

from fedsvd.wire.train_messages import ClientReport


def mean_personal_metrics(reports: Iterable[ClientReport]) -> dict[str, float]:
    """Return the unweighted mean of the clients' accuracy and loss; empty if no client evaluated its model."""
    metrics = [(r.accuracy, r.loss) for r in reports if r.accuracy is not None and r.loss is not None]
    if not metrics:
        return {}
    return {
        "accuracy": sum(accuracy for accuracy, _ in metrics) / len(metrics),
        "loss": sum(loss for _, loss in metrics) / len(metrics),
    }

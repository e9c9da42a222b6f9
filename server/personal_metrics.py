"""What clients with models of their own say about them."""

from __future__ import annotations

from collections.abc import Iterable

from fedsvd.wire.train_messages import ClientReport


def mean_personal_metrics(reports: Iterable[ClientReport]) -> dict[str, float]:
    """Return the mean accuracy and loss over clients, each counted once; empty where none measured its model."""
    found = [(r.accuracy, r.loss) for r in reports if r.accuracy is not None and r.loss is not None]
    if not found:
        return {}
    return {
        "accuracy": sum(accuracy for accuracy, _ in found) / len(found),
        "loss": sum(loss for _, loss in found) / len(found),
    }

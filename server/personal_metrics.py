"""Metrics of the clients' personalized models."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from fedsvd.wire.train_messages import ClientReport


def mean_personal_metrics(reports: Iterable[ClientReport]) -> dict[str, float | None]:
    """Return the unweighted means of the clients' metrics and loss; empty if no client evaluated its model.

    A metric that is undefined for a client is averaged over the others; an accuracy that is undefined for all is None.
    """
    rows = [{**report.metrics, "loss": report.loss} for report in reports if report.loss is not None]
    if not rows:
        return {}
    keys = dict.fromkeys(key for row in rows for key in row)
    return {"accuracy": None, **{key: fmean(row[key] for row in rows if key in row) for key in keys}}

"""Statistics over the seeds of a comparison or a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy import stats

from fedsvd.config.task import Metric


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error (NaN for a single value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def mean_cell(values: Sequence[float], metric: Metric) -> str:
    """Format the mean of a metric over runs with its standard error and the number of runs."""
    if not values:
        return "–"
    return f"{mean_with_error(*mean_and_error(values), metric)} ({len(values)})"


def mean_with_error(mean: float, error: float, metric: Metric, sign: str = "") -> str:
    """Format a mean of a metric and its standard error, shares in percent; an error that is NaN is left out.

    Args:
        mean: The mean.
        error: Its standard error.
        metric: The metric.
        sign: ``+`` to write the sign of a positive mean, too.
    """
    factor, spec = (100, ".1f") if metric.is_share else (1, ".3f")
    margin = "" if math.isnan(error) else f" ± {factor * error:{spec}}"
    return f"{factor * mean:{sign}{spec}}{margin}"


def paired_difference(contender: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[float, float, float]:
    """Compare two contenders over the seeds they have in common.

    Args:
        contender: Accuracies by seed.
        baseline: Accuracies by seed to subtract.

    Returns:
        Mean difference, its standard error, and the p value of a two-sided paired t test (NaN where it is undefined).
    """
    seeds = sorted(contender.keys() & baseline.keys())
    differences = [contender[seed] - baseline[seed] for seed in seeds]
    mean, error = mean_and_error(differences)
    if len(seeds) < 2 or not error:
        return mean, error, math.nan
    test = stats.ttest_rel([contender[seed] for seed in seeds], [baseline[seed] for seed in seeds])
    return mean, error, float(test.pvalue)

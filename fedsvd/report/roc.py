"""ROC plot of an audit's membership inference attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedsvd.privacy.membership import Roc
from fedsvd.privacy.rounding import rounded_up
from fedsvd.report.figures import log_failure, new_figure, save_figure
from fedsvd.report.plots import PALETTE


def max_true_positive_rate(false_positive_rate: np.ndarray, epsilon: float, delta: float) -> np.ndarray:
    """Return the largest true positive rate that (ε, δ)-differential privacy allows at each false positive rate.

    ``min(e^ε FPR + δ, 1 − e^−ε (1 − δ − FPR), 1)`` (Kairouz, Oh and Viswanath 2015, arXiv 1311.0776, section 2).
    """
    lower = math.exp(epsilon) * false_positive_rate + delta
    upper = 1 - math.exp(-epsilon) * (1 - delta - false_positive_rate)
    return np.minimum(1.0, np.minimum(lower, upper))


@log_failure
def plot_roc(curves: Mapping[str, Roc], epsilon: float, delta: float, path: Path) -> None:
    """Plot the ROC curves of the attacks on logarithmic axes, with chance level and the bound that the claim implies.

    Args:
        curves: ROC curve by name of the attack.
        epsilon: The claimed ε.
        delta: The claimed δ.
        path: PNG file to write.
    """
    figure = new_figure(6.4, 4.6)
    axes = figure.subplots()
    resolved = {name: curve.false_positive_rate > 0 for name, curve in curves.items()}
    lowest = min(float(curves[name].false_positive_rate[shown].min()) for name, shown in resolved.items())
    rates = np.geomspace(lowest, 1.0, 400)
    axes.fill_between(rates, max_true_positive_rate(rates, epsilon, delta), 1.0, color="0.92", linewidth=0)
    axes.plot(
        rates,
        max_true_positive_rate(rates, epsilon, delta),
        color="0.45",
        linewidth=1,
        label=f"upper bound at ε = {rounded_up(epsilon, 2)}",
    )
    for color, (name, curve) in zip(PALETTE, curves.items(), strict=False):
        # A curve starts at one false positive: the sample cannot resolve smaller rates.
        shown = resolved[name]
        axes.step(
            curve.false_positive_rate[shown],
            curve.true_positive_rate[shown],
            where="post",
            color=color,
            label=f"{name} (AUC {curve.auc:.3f})",
        )
    axes.plot(rates, rates, color="0.45", linestyle="--", linewidth=1, label="chance (AUC 0.500)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lowest, 1)
    axes.set_ylim(lowest, 1.05)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    save_figure(figure, path, dpi=120)

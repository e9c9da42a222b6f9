"""Membership inference: scores that distinguish members of the training data from non-members, and their ROC curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A standard deviation below this value is a rounding error; a likelihood ratio based on it would be meaningless.
_MIN_STD = 1e-6


@dataclass(frozen=True)
class Roc:
    """A ROC curve: true positive rates over false positive rates, both nondecreasing, from (0, 0) to (1, 1)."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray

    @property
    def auc(self) -> float:
        """The area under the curve: the probability that a member scores above a non-member; ties count half."""
        return float(np.trapezoid(self.true_positive_rate, self.false_positive_rate))

    def tpr_at(self, false_positive_rate: float) -> float:
        """Return the largest true positive rate of a threshold whose false positive rate is at most the given one."""
        return float(self.true_positive_rate[self.false_positive_rate <= false_positive_rate].max())


def roc(scores: np.ndarray, members: np.ndarray) -> Roc:
    """Return the ROC curve over all thresholds.

    Args:
        scores: Scores, shape (n,). A higher score means that the example is more likely to be a member.
        members: Whether each example is a member, shape (n,); at least one member and one non-member.
    """
    order = np.argsort(-scores, kind="stable")
    truth = members[order].astype(bool)
    # No threshold separates equal scores, so the curve has a single point for them.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true_positives, false_positives = np.cumsum(truth)[last], np.cumsum(~truth)[last]
    return Roc(
        np.append(0.0, false_positives / max(1, false_positives[-1])),
        np.append(0.0, true_positives / max(1, true_positives[-1])),
    )


def logit_confidence(losses: np.ndarray) -> np.ndarray:
    """Return log(p / (1 − p)) of p = exp(−loss), the probability that the model assigns to the true label.

    Its distribution over models is close to normal, unlike that of the loss (Carlini et al. 2022, section VI).
    """
    safe = np.maximum(losses.astype(np.float64), 1e-12)
    confidence: np.ndarray = -safe - np.log(-np.expm1(-safe))
    return confidence


def lira_scores(target: np.ndarray, shadows: np.ndarray, trained_with: np.ndarray) -> np.ndarray:
    """Return log likelihood ratios of member versus non-member, shape (n,) (Carlini et al. 2022, arXiv 2112.03570).

    This is the online attack (Algorithm 1): it fits one normal distribution to an example's confidences under the
    shadow models that were trained with it, and one to those under the models that were not. A few shadow models do not
    suffice to estimate a standard deviation for each example. As in the paper for few models, all pairs of an example
    and a model trained with it therefore share one standard deviation, and all other pairs share another.

    Args:
        target: Confidences of the attacked model (`logit_confidence`), shape (n,).
        shadows: Confidences of the shadow models, shape (k, n).
        trained_with: Whether each shadow model was trained with each example, shape (k, n). Each example needs at least
            one model of each kind.
    """
    score = np.zeros_like(target)
    for group, sign in ((trained_with, 1.0), (~trained_with, -1.0)):
        count = group.sum(axis=0)
        mean = np.where(group, shadows, 0.0).sum(axis=0) / count
        # The mean of each example uses up one degree of freedom.
        freedom = max(1, int((count - 1).sum()))
        std = max(_MIN_STD, float(np.sqrt((np.where(group, shadows - mean, 0.0) ** 2).sum() / freedom)))
        score += sign * (-0.5 * ((target - mean) / std) ** 2 - np.log(std))
    return score

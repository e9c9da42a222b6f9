"""Membership inference: scores that tell members of the training data from others, and how well they do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Below this a spread is rounding, and a likelihood ratio with it would be a lottery.
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Roc:
    """A curve of true positive rates over false positive rates, both rising, from (0, 0) to (1, 1)."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray

    @property
    def auc(self) -> float:
        """The area below the curve: the chance that a member scores above a non-member, ties counting half."""
        return float(np.trapezoid(self.true_positive_rate, self.false_positive_rate))

    def tpr_at(self, false_positive_rate: float) -> float:
        """Return the largest share of members found by a threshold that accuses at most such a share of the others."""
        return float(self.true_positive_rate[self.false_positive_rate <= false_positive_rate].max())


def roc(scores: np.ndarray, members: np.ndarray) -> Roc:
    """Return the curve over all thresholds.

    Args:
        scores: Shape (n,); higher means rather a member.
        members: The truth, shape (n,); at least one member and one other.
    """
    order = np.argsort(-scores, kind="stable")
    truth = members[order].astype(bool)
    # Equal scores cannot be told apart by a threshold, so the curve has no point within them.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true_positives, false_positives = np.cumsum(truth)[last], np.cumsum(~truth)[last]
    return Roc(
        np.append(0.0, false_positives / max(1, false_positives[-1])),
        np.append(0.0, true_positives / max(1, true_positives[-1])),
    )


def logit_confidence(losses: np.ndarray) -> np.ndarray:
    """Return log(p / (1 − p)) of p = exp(−loss), the chance that the model gives the right label.

    Its distribution over models is near to normal, which that of losses is not (Carlini et al. 2022, section VI).
    """
    safe = np.maximum(losses.astype(np.float64), 1e-12)
    confidence: np.ndarray = -safe - np.log(-np.expm1(-safe))
    return confidence


def lira_scores(target: np.ndarray, shadows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return log likelihood ratios of "member" against "not", shape (n,) (Carlini et al. 2022, arXiv 2112.03570).

    The online attack with a normal fit to each example's confidences in the shadow models that were trained with it,
    and in those that were not (Algorithm 1). With few shadow models a spread of each example's own cannot be told, so
    there is one for all examples inside and one for all outside, as the paper does for few models.

    Args:
        target: Confidences of the attacked model (`logit_confidence`), shape (n,).
        shadows: Those of the shadow models, shape (k, n).
        inside: Whether a shadow model was trained with an example, shape (k, n); each example has both kinds.
    """
    score = np.zeros_like(target)
    for kind, sign in ((inside, 1.0), (~inside, -1.0)):
        count = kind.sum(axis=0)
        mean = np.where(kind, shadows, 0.0).sum(axis=0) / count
        # One degree of freedom of each example goes into its mean.
        freedom = max(1, int((count - 1).sum()))
        spread = max(_LEAST_SPREAD, float(np.sqrt((np.where(kind, shadows - mean, 0.0) ** 2).sum() / freedom)))
        score += sign * (-0.5 * ((target - mean) / spread) ** 2 - np.log(spread))
    return score

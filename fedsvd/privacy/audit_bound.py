"""One-run auditing: a lower bound on ε, at a confidence level, from an attacker's guesses about canaries.

Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run" (arXiv 2305.08846). Each of m canaries
is included in the training data by an independent fair coin flip. An attacker who sees the released values guesses for
r canaries whether they were included, and abstains from the others. If the mechanism is (ε, δ)-private for each canary,
the number of correct guesses is, up to a correction for δ, stochastically bounded by the number of heads among r coins
with probability e^ε / (1 + e^ε) each (their Theorem 5.2). The observed number of correct guesses therefore refutes
every ε under which it is too unlikely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from fedsvd.errors import PrivacyError

# Step of the upward search. ε counts as refuted only if every smaller ε on the grid is refuted, so that the bound never
# depends on an isolated crossing of the threshold.
_SEARCH_STEP = 0.25
_BISECTIONS = 30
_MAX_EPSILON = 60.0


@dataclass(frozen=True)
class GuessCounts:
    """The number of guesses that an attacker makes.

    Attributes:
        num_in: Number of canaries, those with the highest scores, that are guessed to be included.
        num_out: Number of canaries, those with the lowest scores, that are guessed to be excluded.
    """

    num_in: int
    num_out: int

    @property
    def total(self) -> int:
        """The number of guesses r of the theorem."""
        return self.num_in + self.num_out


@dataclass(frozen=True)
class Bound:
    """A lower bound on ε, proved by an attacker's guesses.

    Attributes:
        epsilon: The mechanism is not (ε', δ)-private for any ε' below this value, at the requested confidence.
        num_canaries: Number of canaries m.
        num_guesses: Number of guesses r.
        num_correct: Number of correct guesses v.
    """

    epsilon: float
    num_canaries: int
    num_guesses: int
    num_correct: int


def p_value(num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float) -> float:
    """Return an upper bound on the probability of ``num_correct`` or more correct guesses under (ε, δ)-privacy.

    With f(v) = P[Binomial(r, e^ε / (1 + e^ε)) ≥ v], the bound is ``f(v) + 2 m δ max_i (f(v − i) − f(v)) / i`` for i
    from 1 to v (Theorem 5.2), capped at 1.

    Args:
        num_canaries: Number of canaries m, each included by a fair coin flip.
        num_guesses: Number of guesses r ≤ m, fixed before the scores are seen.
        num_correct: Number of correct guesses v ≤ r.
        epsilon: ε ≥ 0 of the claim under test.
        delta: δ of the claim.

    Raises:
        PrivacyError: The counts violate 0 ≤ v ≤ r ≤ m, or ε or δ is out of range.
    """
    if not 0 <= num_correct <= num_guesses <= num_canaries:
        raise PrivacyError(
            f"num_correct = {num_correct}, num_guesses = {num_guesses}, num_canaries = {num_canaries} are invalid: "
            "expected 0 ≤ num_correct ≤ num_guesses ≤ num_canaries."
        )
    if not (epsilon >= 0 and 0 <= delta < 1):
        raise PrivacyError(f"ε = {epsilon!r}, δ = {delta!r} are invalid: expected ε ≥ 0 and 0 ≤ δ < 1.")
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(num_correct - 1, num_guesses, chance))
    if delta == 0 or num_correct == 0:
        return min(1.0, tail)
    # f(v − i) − f(v) as a sum of point probabilities: the difference of two tails would lose small ones to rounding.
    below = np.cumsum(binom.pmf(np.arange(num_correct - 1, -1, -1), num_guesses, chance))
    slope = float((below / np.arange(1, num_correct + 1)).max())
    return min(1.0, tail + 2 * num_canaries * delta * slope)


def epsilon_lower_bound(
    num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the ε below which every claim at δ is refuted, or 0 if none is refuted.

    Args:
        num_canaries: Number of canaries m.
        num_guesses: Number of guesses r, fixed before the scores are seen.
        num_correct: Number of correct guesses v.
        delta: δ of the claim.
        confidence: Probability, over the coin flips and the mechanism, that the bound holds.

    Raises:
        PrivacyError: As for `p_value`, or the confidence is out of range.
    """
    if not 0 < confidence < 1:
        raise PrivacyError(f"confidence = {confidence!r} is invalid: expected 0 < confidence < 1.")

    def refuted(epsilon: float) -> bool:
        return p_value(num_canaries, num_guesses, num_correct, epsilon, delta) < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low = 0.0
    while refuted(low + _SEARCH_STEP) and low < _MAX_EPSILON:
        low += _SEARCH_STEP
    high = low + _SEARCH_STEP
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def count_correct(scores: np.ndarray, included: np.ndarray, guesses: GuessCounts) -> int:
    """Guess the inclusion of canaries from their scores, and return the number of correct guesses.

    Args:
        scores: Score of each canary, shape (m,). A higher score means that the canary is more likely to be included.
            Canaries with equal scores keep their order.
        included: Whether each canary was included, shape (m,).
        guesses: Number of canaries to guess as included and as excluded.
    """
    order = np.argsort(-scores, kind="stable")
    guessed_out = order[len(order) - guesses.num_out :]
    return int(included[order[: guesses.num_in]].sum() + (~included[guessed_out]).sum())


def audit_scores(
    scores: np.ndarray, included: np.ndarray, tests: tuple[GuessCounts, ...], delta: float, confidence: float
) -> Bound:
    """Return the largest bound of several tests, with a Bonferroni correction so that all of them hold jointly.

    Args:
        scores: As for `count_correct`.
        included: As for `count_correct`.
        tests: Numbers of guesses, chosen before the scores were seen.
        delta: δ of the claim.
        confidence: Confidence of the result.
    """
    test_confidence = 1 - (1 - confidence) / len(tests)
    bounds = []
    for guesses in tests:
        correct = count_correct(scores, included, guesses)
        epsilon = epsilon_lower_bound(len(scores), guesses.total, correct, delta, test_confidence)
        bounds.append(Bound(epsilon, len(scores), guesses.total, correct))
    return max(bounds, key=lambda bound: bound.epsilon)


def largest_bound(num_canaries: int, delta: float, confidence: float, num_tests: int = 1) -> float:
    """Return the largest bound that an audit of this size can show, which is reached if all guesses are correct."""
    test_confidence = 1 - (1 - confidence) / num_tests
    sizes = np.unique(np.geomspace(1, num_canaries, 40).astype(int)).tolist()
    return max(epsilon_lower_bound(num_canaries, size, size, delta, test_confidence) for size in sizes)


def plan_guesses(
    num_canaries: int,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    confidence: float,
    rng: np.random.Generator,
) -> GuessCounts:
    """Choose the number of guesses from the claimed mechanism alone, before it runs.

    The scores of Dirac canaries are simulated from the claimed mechanism: an included canary contributes
    Binomial(steps, sample_rate) clipped gradients, and every score has noise from N(0, steps σ²). The result is the
    pair of counts whose expected number of correct guesses gives the largest bound.

    Args:
        num_canaries: Number of canaries m.
        noise_multiplier: σ.
        sample_rate: Poisson rate q.
        steps: Total number of noisy steps.
        delta: δ of the claim.
        confidence: Confidence of the test.
        rng: Random generator for the simulation.
    """
    draws = max(num_canaries, 50_000)
    included = np.arange(draws) < draws // 2
    scores = rng.normal(0.0, math.sqrt(steps) * noise_multiplier, draws)
    scores[included] += rng.binomial(steps, sample_rate, draws // 2)
    best, best_epsilon = GuessCounts(num_canaries // 4, num_canaries // 4), 0.0
    for num_in in np.unique(np.geomspace(10, num_canaries, 30).astype(int)):
        for num_out in (0, num_in):
            guesses = GuessCounts(int(num_in), int(num_out))
            if guesses.total > num_canaries:
                continue
            scaled = GuessCounts(int(num_in * draws / num_canaries), int(num_out * draws / num_canaries))
            accuracy = count_correct(scores, included, scaled) / scaled.total
            epsilon = epsilon_lower_bound(num_canaries, guesses.total, int(accuracy * guesses.total), delta, confidence)
            if epsilon > best_epsilon:
                best, best_epsilon = guesses, epsilon
    return best

"""One-run auditing: from guesses about canaries to a lower bound on ε with a confidence.

Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run" (arXiv 2305.08846). Each of m canaries
is put into the training data by its own fair coin; an attacker who sees what is released guesses for r of them whether
they were in, and abstains from the others. Were the mechanism (ε, δ)-private for each canary, it could hardly be right
more often than r coins of chance e^ε / (1 + e^ε) come up heads (their Theorem 5.2). So the number of right guesses
refutes every ε under which it is too unlikely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from fedsvd.errors import PrivacyError

# Steps of the search: ε is refuted only where every smaller one is, so that a bound never hangs on a lucky crossing.
_STEP = 0.25
_BISECTIONS = 30
_LARGEST_EPSILON = 60.0


@dataclass(frozen=True)
class Guesses:
    """How many guesses an attacker makes: the canaries of the highest scores are called in, of the lowest out."""

    num_in: int
    num_out: int

    @property
    def total(self) -> int:
        """The r of the theorem."""
        return self.num_in + self.num_out


@dataclass(frozen=True)
class Bound:
    """What an attacker's guesses prove.

    Attributes:
        epsilon: The mechanism is not (ε', δ)-private for any ε' below this, at the confidence asked for.
        num_canaries: m.
        num_guesses: r.
        num_correct: v.
    """

    epsilon: float
    num_canaries: int
    num_guesses: int
    num_correct: int


def p_value(num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float) -> float:
    """Return the most that an (ε, δ)-private mechanism can make ``num_correct`` or more right guesses likely.

    With f(v) = P[Binomial(r, e^ε / (1 + e^ε)) ≥ v] it is ``f(v) + 2 m δ max_i (f(v − i) − f(v)) / i``, i from 1 to v
    (Theorem 5.2), and at most 1.

    Args:
        num_canaries: m, each in by a fair coin.
        num_guesses: r ≤ m, fixed before the scores are seen.
        num_correct: v ≤ r.
        epsilon: ε ≥ 0 of the claim that is tested.
        delta: Its δ.

    Raises:
        PrivacyError: Counts that are not 0 ≤ v ≤ r ≤ m, or ε or δ out of range.
    """
    if not 0 <= num_correct <= num_guesses <= num_canaries:
        raise PrivacyError(
            f"{num_correct} right of {num_guesses} guesses about {num_canaries} canaries is impossible; allowed: "
            "0 ≤ right ≤ guesses ≤ canaries."
        )
    if not (epsilon >= 0 and 0 <= delta < 1):
        raise PrivacyError(f"ε = {epsilon!r}, δ = {delta!r} cannot be tested; allowed: ε ≥ 0 and 0 ≤ δ < 1.")
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(num_correct - 1, num_guesses, chance))
    if delta == 0 or num_correct == 0:
        return min(1.0, tail)
    # f(v − i) − f(v), summed from single chances: a difference of two tails would lose the small ones to rounding.
    below = np.cumsum(binom.pmf(np.arange(num_correct - 1, -1, -1), num_guesses, chance))
    slope = float((below / np.arange(1, num_correct + 1)).max())
    return min(1.0, tail + 2 * num_canaries * delta * slope)


def epsilon_lower_bound(
    num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the ε below which every claim at δ is refuted; 0 where none is.

    Args:
        num_canaries: m.
        num_guesses: r, fixed before the scores are seen.
        num_correct: v.
        delta: δ of the claim.
        confidence: Chance that the bound holds, over the coins and the mechanism.

    Raises:
        PrivacyError: As `p_value`, or a confidence out of range.
    """
    if not 0 < confidence < 1:
        raise PrivacyError(f"confidence = {confidence!r} is not allowed; it must lie between 0 and 1.")

    def refuted(epsilon: float) -> bool:
        return p_value(num_canaries, num_guesses, num_correct, epsilon, delta) < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low = 0.0
    while refuted(low + _STEP) and low < _LARGEST_EPSILON:
        low += _STEP
    high = low + _STEP
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def count_correct(scores: np.ndarray, included: np.ndarray, guesses: Guesses) -> int:
    """Guess by the scores and count what is right.

    Args:
        scores: Of each canary, shape (m,); higher means rather in. Equal scores are taken in the order of the canaries.
        included: Whether each was in, shape (m,).
        guesses: How many to call in and out.
    """
    order = np.argsort(-scores, kind="stable")
    called_out = order[len(order) - guesses.num_out :]
    return int(included[order[: guesses.num_in]].sum() + (~included[called_out]).sum())


def audit_scores(
    scores: np.ndarray, included: np.ndarray, tests: tuple[Guesses, ...], delta: float, confidence: float
) -> Bound:
    """Return the best bound of several tests, each at a confidence that makes all of them hold together (Bonferroni).

    Args:
        scores: As for `count_correct`.
        included: As for `count_correct`.
        tests: Numbers of guesses, chosen before the scores were seen.
        delta: δ of the claim.
        confidence: Of the result.
    """
    each = 1 - (1 - confidence) / len(tests)
    bounds = []
    for guesses in tests:
        correct = count_correct(scores, included, guesses)
        epsilon = epsilon_lower_bound(len(scores), guesses.total, correct, delta, each)
        bounds.append(Bound(epsilon, len(scores), guesses.total, correct))
    return max(bounds, key=lambda bound: bound.epsilon)


def largest_bound(num_canaries: int, delta: float, confidence: float, num_tests: int = 1) -> float:
    """Return the bound of an attacker whose guesses about all canaries are right: no audit of this size shows more."""
    each = 1 - (1 - confidence) / num_tests
    sizes = np.unique(np.geomspace(1, num_canaries, 40).astype(int)).tolist()
    return max(epsilon_lower_bound(num_canaries, size, size, delta, each) for size in sizes)


def plan_guesses(
    num_canaries: int,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    confidence: float,
    rng: np.random.Generator,
) -> Guesses:
    """Choose how many guesses to make, from the mechanism alone and before it has run.

    The scores that a Dirac canary would get are drawn from the mechanism as it is claimed: Binomial(steps, sample_rate)
    clipped gradients where it is in, and N(0, steps σ²) in either case. The numbers of guesses whose expected number of
    right ones gives the best bound are taken.

    Args:
        num_canaries: m.
        noise_multiplier: σ.
        sample_rate: Poisson rate q.
        steps: Noisy steps in all.
        delta: δ of the claim.
        confidence: Of the test.
        rng: For the draws.
    """
    draws = max(num_canaries, 50_000)
    included = np.arange(draws) < draws // 2
    scores = rng.normal(0.0, math.sqrt(steps) * noise_multiplier, draws)
    scores[included] += rng.binomial(steps, sample_rate, draws // 2)
    best, best_epsilon = Guesses(num_canaries // 4, num_canaries // 4), 0.0
    for num_in in np.unique(np.geomspace(10, num_canaries, 30).astype(int)):
        for num_out in (0, num_in):
            guesses = Guesses(int(num_in), int(num_out))
            if guesses.total > num_canaries:
                continue
            many = Guesses(int(num_in * draws / num_canaries), int(num_out * draws / num_canaries))
            right = count_correct(scores, included, many) / many.total
            epsilon = epsilon_lower_bound(num_canaries, guesses.total, int(right * guesses.total), delta, confidence)
            if epsilon > best_epsilon:
                best, best_epsilon = guesses, epsilon
    return best

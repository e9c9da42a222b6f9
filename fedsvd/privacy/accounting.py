"""Privacy accounting: the ε spent by a history of noisy steps, and the noise that stays within a budget.

The accountants are those of Opacus. ε is always their upper bound, rounded up.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fedsvd.errors import PrivacyError
from fedsvd.privacy.gaussian import gaussian_epsilon

EPSILON_DIGITS = 4
ACCOUNTANTS = ("prv", "rdp")
# Below this δ, rounding errors in the PRV accountant's Fourier transforms become visible; at 1e-14 its "upper bound" is
# below the true ε.
MIN_PRV_DELTA = 1e-10
# Calibration stops once ε reaches this fraction of the target.
_MIN_BUDGET_USE = 0.995
_COARSE_EPS_ERROR = 0.01
_MAX_NOISE_MULTIPLIER = 1e4
# Below this value the accountants' grids become too large, and no sensible training needs so little noise.
_MIN_NOISE_MULTIPLIER = 0.25


@dataclass(frozen=True)
class Spend:
    """Steps of the Poisson-subsampled Gaussian mechanism, as charged to a ledger.

    Attributes:
        noise_multiplier: σ. The sum of clipped gradients receives noise with standard deviation σ · max_grad_norm.
        sample_rate: Probability that an example is in the batch of a step.
        steps: Number of steps.

    Raises:
        PrivacyError: A value is out of range.

    Example:
        >>> import fedsvd
        >>> fedsvd.Spend(noise_multiplier=0.8, sample_rate=0.01, steps=100)
        Spend(noise_multiplier=0.8, sample_rate=0.01, steps=100)
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)):
            raise PrivacyError(f"noise_multiplier = {self.noise_multiplier!r} is invalid: expected a number > 0.")
        if not 0 < self.sample_rate <= 1:
            raise PrivacyError(f"sample_rate = {self.sample_rate!r} is invalid: expected 0 < sample_rate ≤ 1.")
        if self.steps < 1:
            raise PrivacyError(f"steps = {self.steps!r} is invalid: expected at least 1.")


def epsilon(history: Sequence[Spend], target_delta: float, accountant: str = "prv") -> float:
    """Return an upper bound on the ε that a history has spent at δ, rounded up to four decimal places.

    Args:
        history: Spends in any order, with any noise multipliers and sample rates. The ε of an empty history is 0.
        target_delta: δ.
        accountant: ``prv`` (Gopi et al. 2021, arXiv 2106.02848; the upper end of its error bound; exact if no step
            samples, see `fedsvd.privacy.gaussian`) or ``rdp`` (Mironov 2017, arXiv 1702.07476).

    Raises:
        PrivacyError: δ is out of range or too small for ``prv``, the accountant is unknown, or ε is not finite.

    Example:
        >>> import fedsvd
        >>> first, second = fedsvd.Spend(1.0, 0.01, 500), fedsvd.Spend(2.0, 0.02, 500)
        >>> fedsvd.epsilon([first, second], target_delta=1e-5, accountant="rdp")
        1.8947
    """
    check_delta(target_delta, accountant)
    merged = _merge_equal_mechanisms(history)
    if not merged:
        return 0.0
    bound = _epsilon_bound(merged, target_delta, accountant, _COARSE_EPS_ERROR)
    if accountant == "prv" and bound < 1:
        # The PRV bound exceeds its estimate by a fixed error: 1 % of an ε of 1, but 100 % of an ε of 0.01. A finer
        # mesh, of about a million points at most, reduces that error to half a percent.
        finest = max(1e-4, 2.2e-5 * math.sqrt(sum(count for _, _, count in merged)))
        bound = min(bound, _epsilon_bound(merged, target_delta, accountant, max(finest, 0.005 * bound)))
    return _round_up(bound)


def rounded_to_multiple(spent: float, unit: float) -> float:
    """Return ε rounded up to a multiple of ``unit``, a bound that depends on few details of the history."""
    return max(spent, round(math.ceil(spent / unit) * unit, 2 * EPSILON_DIGITS))


def _merge_equal_mechanisms(history: Sequence[Spend]) -> tuple[tuple[float, float, int], ...]:
    """Return sorted (noise multiplier, sample rate, steps) tuples, with the steps of equal mechanisms added up."""
    steps: dict[tuple[float, float], int] = {}
    for spend in history:
        mechanism = (spend.noise_multiplier, spend.sample_rate)
        steps[mechanism] = steps.get(mechanism, 0) + spend.steps
    return tuple(sorted((sigma, rate, count) for (sigma, rate), count in steps.items()))


def calibrate(
    target_epsilon: float, target_delta: float, sample_rate: float, steps: int, accountant: str = "prv"
) -> float:
    """Return a noise multiplier that keeps ``steps`` steps within (ε, δ), using all but half a percent of the budget.

    The search stops earlier, with less of the budget used, if the noise multiplier would fall below 0.25 or its
    bracket is narrower than 0.1 %.

    Args:
        target_epsilon: The ε that must not be exceeded.
        target_delta: δ.
        sample_rate: The client's own Poisson rate.
        steps: The largest number of steps that the client can ever take.
        accountant: As for `epsilon`.

    Raises:
        PrivacyError: An input is out of range, or no noise multiplier up to 10⁴ stays within the budget.

    Example:
        >>> import fedsvd
        >>> noise = fedsvd.calibrate(8.0, target_delta=1e-5, sample_rate=0.01, steps=1000, accountant="rdp")
        >>> 7.9 < fedsvd.epsilon([fedsvd.Spend(noise, 0.01, 1000)], target_delta=1e-5, accountant="rdp") <= 8.0
        True
    """
    return _calibrate(target_epsilon, target_delta, sample_rate, steps, accountant)


@lru_cache(maxsize=256)
def _calibrate(target_epsilon: float, target_delta: float, sample_rate: float, steps: int, accountant: str) -> float:
    check_delta(target_delta, accountant)
    if not (target_epsilon > 0 and math.isfinite(target_epsilon)):
        raise PrivacyError(f"target_epsilon = {target_epsilon!r} is invalid: expected a finite number > 0.")

    def epsilon_of(noise_multiplier: float) -> float:
        spend = Spend(noise_multiplier, sample_rate, steps)
        coarse = _epsilon_bound(_merge_equal_mechanisms([spend]), target_delta, accountant, _COARSE_EPS_ERROR)
        # The finer bound is expensive, and matters only near the target.
        coarse_suffices = coarse - 2 * _COARSE_EPS_ERROR > target_epsilon or coarse < target_epsilon / 2
        return coarse if coarse_suffices else epsilon([spend], target_delta, accountant)

    # The budget is exceeded at ``low`` and not exceeded at ``high``.
    low, high, epsilon_low = 0.0, 1.0, math.inf
    while (epsilon_high := epsilon_of(high)) > target_epsilon:
        low, high, epsilon_low = high, 2 * high, epsilon_high
        if high > _MAX_NOISE_MULTIPLIER:
            raise PrivacyError(
                f"no noise multiplier up to {_MAX_NOISE_MULTIPLIER:g} keeps {steps} steps at sample rate "
                f"{sample_rate:g} within ε = {target_epsilon:g} at δ = {target_delta:g}; use fewer steps or a larger ε."
            )
    while epsilon_high < _MIN_BUDGET_USE * target_epsilon and high - low > 1e-3 * high:
        middle = _interpolate_noise(low, epsilon_low, high, epsilon_high, target_epsilon)
        if middle < _MIN_NOISE_MULTIPLIER:
            return high
        epsilon_middle = epsilon_of(middle)
        if epsilon_middle <= target_epsilon:
            high, epsilon_high = middle, epsilon_middle
        else:
            low, epsilon_low = middle, epsilon_middle
    return high


def _interpolate_noise(
    low: float, epsilon_low: float, high: float, epsilon_high: float, target_epsilon: float
) -> float:
    """Estimate the noise multiplier that just stays within a budget, from a bracket and the ε at both of its ends.

    While the lower end is unknown (0), ε is assumed to fall as 1/σ, and afterwards as a power of σ.
    """
    aim = (1 + _MIN_BUDGET_USE) / 2 * target_epsilon
    epsilon_high = max(epsilon_high, 1e-3 * aim)
    if not low:
        return high * max(0.25, epsilon_high / aim)
    fraction = math.log(aim / epsilon_high) / math.log(epsilon_low / epsilon_high)
    # Stay away from both ends, so that the bracket shrinks noticeably.
    return high * math.pow(low / high, min(0.95, max(0.05, fraction)))


@lru_cache(maxsize=4096)
def _epsilon_bound(
    history: tuple[tuple[float, float, int], ...], target_delta: float, accountant: str, eps_error: float
) -> float:
    if accountant == "prv" and all(sample_rate == 1 for _, sample_rate, _ in history):
        return gaussian_epsilon(math.sqrt(sum(steps / sigma**2 for sigma, _, steps in history)), target_delta)
    engine = _accountants().create_accountant(mechanism=accountant)
    engine.history = list(history)
    options = {"eps_error": eps_error} if accountant == "prv" else {}
    # At sample rate 1, the PRV's lower limit is log(1 - q) = -∞. This is correct, but numpy warns about it.
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        # An optimal Rényi order at the end of the grid makes a bound looser (often only that of the PRV domain), but
        # never invalid.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        bound = float(engine.get_epsilon(delta=target_delta, **options))
    if not math.isfinite(bound):
        raise PrivacyError(
            f"the {accountant} accountant finds no finite ε for the history {history} (noise multiplier, sample rate, "
            f"steps) at δ = {target_delta:g}; use more noise, fewer steps or a larger δ."
        )
    return bound


def _round_up(bound: float) -> float:
    scale = 10**EPSILON_DIGITS
    return float(math.ceil(bound * scale) / scale)


def check_delta(target_delta: float, accountant: str) -> None:
    """Check δ and the accountant.

    Raises:
        PrivacyError: δ is out of range or too small for the accountant, or the accountant is unknown.
    """
    if not 0 < target_delta < 1:
        raise PrivacyError(f"target_delta = {target_delta!r} is invalid: expected 0 < target_delta < 1.")
    check_accountant(accountant)
    if accountant == "prv" and target_delta < MIN_PRV_DELTA:
        raise PrivacyError(
            f"target_delta = {target_delta!r} is too small for the prv accountant, whose rounding errors are visible "
            f"below {MIN_PRV_DELTA:g}; use a larger δ, or accountant = rdp."
        )


def check_accountant(accountant: str) -> None:
    """Check the name of an accountant.

    Raises:
        PrivacyError: The accountant is unknown.
    """
    if accountant not in ACCOUNTANTS:
        raise PrivacyError(f"accountant = {accountant!r} is unknown: expected one of {', '.join(ACCOUNTANTS)}.")


@lru_cache(maxsize=1)
def _accountants() -> Any:
    """Import Opacus' accountants when the first ε is computed, because they load all of Opacus and SciPy."""
    from opacus import accountants

    from fedsvd.compat.opacus import cache_renyi_curves

    cache_renyi_curves()
    return accountants

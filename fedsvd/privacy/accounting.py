"""How much ε a history of noisy steps has spent, and how much noise keeps within a budget.

The accountants are Opacus'; ε is always their upper bound, rounded up.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from opacus.accountants import create_accountant
from opacus.accountants.analysis import rdp as renyi

from fedsvd.errors import PrivacyError

EPSILON_DIGITS = 4
ACCOUNTANTS = ("prv", "rdp")
# Below this δ the rounding of the PRV accountant's Fourier transforms shows; at 1e-14 its "upper bound" lies below ε.
MIN_PRV_DELTA = 1e-10
_CLOSE_ENOUGH = 0.995
_COARSE_ERROR = 0.01
_LARGEST_NOISE = 1e4
# Below this the accountants' grids explode, and no sensible training wants so little noise.
_LEAST_NOISE = 0.25

# Opacus computes a mechanism's Rényi curve anew for every number of its steps, and twice for the PRV's domain: that was
# most of an accountant's time, and of a small run's. The numbers are the same.
renyi._compute_rdp = lru_cache(maxsize=2**15)(renyi._compute_rdp)


@dataclass(frozen=True)
class Spend:
    """Steps of the Poisson-subsampled Gaussian mechanism.

    Attributes:
        noise_multiplier: σ: noise of standard deviation σ · max_grad_norm in the sum of clipped gradients.
        sample_rate: Chance of each example to be in a step's batch.
        steps: How many steps.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)):
            raise PrivacyError(f"noise_multiplier = {self.noise_multiplier!r} gives no privacy; it must be above 0.")
        if not 0 < self.sample_rate <= 1:
            raise PrivacyError(f"sample_rate = {self.sample_rate!r} is not allowed; it must be above 0 and at most 1.")
        if self.steps < 1:
            raise PrivacyError(f"steps = {self.steps!r} is not allowed; at least 1 step can be accounted for.")


def epsilon(history: Sequence[Spend], target_delta: float, accountant: str = "prv") -> float:
    """Return the ε that a history has spent at δ, as an upper bound rounded up to four digits.

    Args:
        history: Spends in any order, with any noise and sample rates; one without entries has spent 0.
        target_delta: The δ.
        accountant: ``prv`` (Gopi et al. 2021, arXiv 2106.02848; the upper end of its error bound) or ``rdp``
            (Mironov 2017, arXiv 1702.07476).

    Raises:
        PrivacyError: δ out of range or too small for ``prv``, an unknown accountant, or no finite ε.
    """
    check_delta(target_delta, accountant)
    merged = _merged(history)
    if not merged:
        return 0.0
    bound = _bound(merged, target_delta, accountant, _COARSE_ERROR)
    if accountant == "prv" and bound < 1:
        # The PRV bound lies a fixed error above its estimate: 1 % of an ε of 1, but all of an ε of 0.01. A finer mesh,
        # of about a million points at most, makes that error half a percent.
        finest = max(1e-4, 2.2e-5 * math.sqrt(sum(count for _, _, count in merged)))
        bound = min(bound, _bound(merged, target_delta, accountant, max(finest, 0.005 * bound)))
    return _rounded_up(bound)


def _merged(history: Sequence[Spend]) -> tuple[tuple[float, float, int], ...]:
    """Return (noise multiplier, sample rate, steps) with equal mechanisms counted together."""
    steps: dict[tuple[float, float], int] = {}
    for spend in history:
        mechanism = (spend.noise_multiplier, spend.sample_rate)
        steps[mechanism] = steps.get(mechanism, 0) + spend.steps
    return tuple(sorted((sigma, rate, count) for (sigma, rate), count in steps.items()))


@lru_cache(maxsize=256)
def calibrate(
    target_epsilon: float, target_delta: float, sample_rate: float, steps: int, accountant: str = "prv"
) -> float:
    """Return a noise multiplier that keeps ``steps`` steps within (ε, δ), at most half a percent below the budget.

    Args:
        target_epsilon: The ε that must not be exceeded.
        target_delta: The δ.
        sample_rate: The client's own Poisson rate.
        steps: The most steps that the client can ever take.
        accountant: As for `epsilon`.

    Raises:
        PrivacyError: An input out of range, or a budget that no noise up to 10⁴ can keep.
    """
    check_delta(target_delta, accountant)
    if not (target_epsilon > 0 and math.isfinite(target_epsilon)):
        raise PrivacyError(f"target_epsilon = {target_epsilon!r} is not allowed; it must be a number above 0.")

    def spent(noise_multiplier: float) -> float:
        spend = Spend(noise_multiplier, sample_rate, steps)
        coarse = _bound(_merged([spend]), target_delta, accountant, _COARSE_ERROR)
        # The finer bound is dear, and decides only near the target.
        decided = coarse - 2 * _COARSE_ERROR > target_epsilon or coarse < target_epsilon / 2
        return coarse if decided else epsilon([spend], target_delta, accountant)

    low, high, beyond = 0.0, 1.0, math.inf
    while (reached := spent(high)) > target_epsilon:
        low, high, beyond = high, 2 * high, reached
        if high > _LARGEST_NOISE:
            raise PrivacyError(
                f"no noise multiplier up to {_LARGEST_NOISE:g} keeps {steps} steps at sample rate {sample_rate:g} "
                f"within ε = {target_epsilon:g} at δ = {target_delta:g}; take fewer steps or a larger ε."
            )
    while reached < _CLOSE_ENOUGH * target_epsilon and high - low > 1e-3 * high:
        middle = _between(low, beyond, high, reached, target_epsilon)
        if middle < _LEAST_NOISE:
            return high
        found = spent(middle)
        if found <= target_epsilon:
            high, reached = middle, found
        else:
            low, beyond = middle, found
    return high


def _between(low: float, beyond: float, high: float, reached: float, target_epsilon: float) -> float:
    """Guess the noise that just keeps a budget, from too little noise and its ε, and enough noise and its ε.

    Where too little is not known yet, ε is taken to fall as 1/σ, and else as a power of σ.
    """
    aim = (1 + _CLOSE_ENOUGH) / 2 * target_epsilon
    reached = max(reached, 1e-3 * aim)
    if not low:
        return high * max(0.25, reached / aim)
    share = math.log(aim / reached) / math.log(beyond / reached)
    # Never so close to an end that the bracket hardly shrinks.
    return high * math.pow(low / high, min(0.95, max(0.05, share)))


@lru_cache(maxsize=4096)
def _bound(
    history: tuple[tuple[float, float, int], ...], target_delta: float, accountant: str, eps_error: float
) -> float:
    engine = create_accountant(mechanism=accountant)
    engine.history = list(history)
    options = {"eps_error": eps_error} if accountant == "prv" else {}
    # At sample rate 1 the PRV's lower limit is log(1 - q) = -∞: right, and reported by numpy.
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        # Rényi orders at the end of their grid loosen a bound (here often only that of PRV's domain), never break it.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        bound = float(engine.get_epsilon(delta=target_delta, **options))
    if not math.isfinite(bound):
        raise PrivacyError(f"the {accountant} accountant finds no finite ε for {history} at δ = {target_delta:g}.")
    return bound


def _rounded_up(bound: float) -> float:
    scale = 10**EPSILON_DIGITS
    return float(math.ceil(bound * scale) / scale)


def check_delta(target_delta: float, accountant: str) -> None:
    """Raise `PrivacyError` for a δ out of range, or too small for the accountant, and for an unknown accountant."""
    if not 0 < target_delta < 1:
        raise PrivacyError(f"target_delta = {target_delta!r} is not allowed; it must lie between 0 and 1.")
    if accountant not in ACCOUNTANTS:
        raise PrivacyError(f"accountant = {accountant!r} is not known; allowed: {', '.join(ACCOUNTANTS)}.")
    if accountant == "prv" and target_delta < MIN_PRV_DELTA:
        raise PrivacyError(
            f"target_delta = {target_delta!r} is too small for the prv accountant, whose rounding errors show below "
            f"{MIN_PRV_DELTA:g}; take a larger δ, or accountant = rdp."
        )

"""The exact guarantee of the Gaussian mechanism without sampling, and of its compositions.

One step with noise multiplier σ in which every example takes part is μ-Gaussian differentially private with μ = 1/σ.
Steps compose exactly: ``μ² = Σ 1/σᵢ²`` (Dong, Roth and Su 2019, arXiv 1905.02383, Corollary 3.3). The guarantee is
(ε, δ(ε)) for every ε, with equality (Balle and Wang 2018, arXiv 1805.06530, Theorem 8):

    δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ)
"""

from __future__ import annotations

import math

# Relative margin for rounding errors in δ; it changes ε in the ninth digit.
_MARGIN = 1e-9


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return δ(ε) of a μ-Gaussian differentially private mechanism."""
    # Importing SciPy takes a quarter of a second, and only this function needs it.
    from scipy.special import log_ndtr

    first, second = float(log_ndtr(mu / 2 - epsilon / mu)), float(log_ndtr(-mu / 2 - epsilon / mu))
    # The difference of two nearly equal numbers, without cancellation.
    return -math.exp(first) * math.expm1(min(0.0, epsilon + second - first))


def gaussian_epsilon(mu: float, target_delta: float) -> float:
    """Return the smallest ε of a μ-Gaussian differentially private mechanism at δ, up to 1e-9, never below it."""
    delta = target_delta * (1 - _MARGIN)
    low, high = 0.0, 1.0
    if gaussian_delta(mu, low) <= delta:
        return 0.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
        if high > 1e9:
            return math.inf
    while high - low > 1e-10 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_delta(mu, middle) <= delta else (middle, high)
    return high

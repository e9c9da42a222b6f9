"""The exact guarantee without sampling: closed forms, inversion, composition, and calibration at sample rate 1."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.privacy.accounting import Spend, calibrate, epsilon
from fedsvd.privacy.gaussian import gaussian_delta, gaussian_epsilon


def test_delta_at_epsilon_zero_is_the_total_variation_distance() -> None:
    # Φ(μ/2) - Φ(-μ/2) = erf(μ / (2 √2)).
    for mu in (0.1, 1.0, 3.0):
        assert gaussian_delta(mu, 0.0) == pytest.approx(math.erf(mu / (2 * math.sqrt(2))), rel=1e-12)


@given(st.floats(0.01, 20), st.floats(-10, -1))
def test_epsilon_inverts_delta_and_is_not_below_it(mu: float, exponent: float) -> None:
    delta = 10**exponent
    found = gaussian_epsilon(mu, delta)

    assert gaussian_delta(mu, found) <= delta
    if found > 1e-6:
        assert gaussian_delta(mu, found * (1 - 1e-6)) > delta


def test_steps_compose_to_one_gaussian() -> None:
    history = [Spend(4.0, 1.0, 9), Spend(3.0, 1.0, 4)]
    mu = math.sqrt(9 / 16 + 4 / 9)

    assert epsilon(history, 1e-5) == pytest.approx(gaussian_epsilon(mu, 1e-5), abs=1.01e-4)
    assert epsilon(history, 1e-5) >= gaussian_epsilon(mu, 1e-5)
    assert epsilon([*history, Spend(4.0, 0.999, 1)], 1e-5) > epsilon(history, 1e-5)


@pytest.mark.parametrize(("target", "steps", "expected"), [(1.0, 1, 3.7304), (3.0, 20, 6.2190), (0.5, 20, 31.4476)])
def test_noise_of_full_batches_is_that_of_the_analytic_gaussian_mechanism(
    target: float, steps: int, expected: float
) -> None:
    # The smallest noise multiplier by Balle and Wang's analytic calibration; 0.5 % of ε may remain unused.
    noise = calibrate(target, 1e-5, 1.0, steps)

    assert gaussian_epsilon(math.sqrt(steps) / expected, 1e-5) == pytest.approx(target, rel=1e-4)
    assert expected <= noise <= 1.005 * expected

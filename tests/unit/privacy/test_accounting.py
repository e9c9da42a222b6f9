"""Tests of accounting: ε is an upper bound that agrees with closed forms; calibrated noise stays within the budget."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis import rdp as renyi
from scipy.optimize import brentq
from scipy.stats import norm

from fedsvd.errors import PrivacyError
from fedsvd.privacy import accounting
from fedsvd.privacy.accounting import Spend, calibrate, epsilon, rounded_to_multiple

DELTA = 1e-5


def gaussian_epsilon(noise_multiplier: float, steps: int, delta: float) -> float:
    """Exact ε of composed Gaussians without subsampling (Balle and Wang 2018, arXiv 1805.06530, Theorem 8)."""
    mu = math.sqrt(steps) / noise_multiplier

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)) - delta

    return float(brentq(excess, 0, 100))


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(("noise_multiplier", "steps"), [(2.0, 4), (5.0, 100), (1.0, 1)])
def test_without_subsampling_epsilon_is_an_upper_bound_on_the_exact_value(
    accountant: str, noise_multiplier: float, steps: int
) -> None:
    exact = gaussian_epsilon(noise_multiplier, steps, DELTA)

    found = epsilon([Spend(noise_multiplier, 1.0, steps)], DELTA, accountant)

    assert exact <= found
    assert found <= (exact + 0.02 if accountant == "prv" else 1.15 * exact)


def test_empty_history_has_epsilon_zero() -> None:
    assert epsilon([], DELTA) == 0.0


@given(st.floats(0, 100), st.floats(0.01, 50))
def test_epsilon_is_rounded_up_to_the_next_multiple(spent: float, unit: float) -> None:
    rounded = rounded_to_multiple(spent, unit)

    assert spent <= rounded < spent + unit * (1 + 1e-6) + 1e-8
    assert rounded / unit == pytest.approx(round(rounded / unit), abs=1e-5)
    # Rounding errors do not add a multiple.
    tenths = [round(number * 0.1, 4) for number in range(99)]
    assert [rounded_to_multiple(tenth, 0.1) for tenth in tenths] == tenths


def test_epsilon_does_not_depend_on_how_steps_are_split() -> None:
    unsplit = [Spend(1.0, 0.05, 30), Spend(2.0, 0.1, 10)]
    split = [Spend(2.0, 0.1, 4), Spend(1.0, 0.05, 10), Spend(2.0, 0.1, 6), Spend(1.0, 0.05, 20)]

    assert epsilon(unsplit, DELTA) == epsilon(split, DELTA)


def test_epsilon_grows_with_each_spend() -> None:
    history = [Spend(1.5, 0.1, 1)]
    spent = epsilon(history, DELTA, "rdp")
    for spend in (Spend(1.5, 0.1, 1), Spend(2.0, 0.1, 1), Spend(0.8, 0.02, 5)):
        history.append(spend)
        after = epsilon(history, DELTA, "rdp")
        assert after > spent
        spent = after


@pytest.mark.slow
@settings(max_examples=15)
@given(
    target=st.floats(0.5, 10),
    sample_rate=st.floats(0.005, 1.0),
    steps=st.integers(1, 300),
)
def test_calibrated_noise_uses_nearly_all_of_the_budget(target: float, sample_rate: float, steps: int) -> None:
    noise_multiplier = calibrate(target, DELTA, sample_rate, steps, "rdp")

    spent = epsilon([Spend(noise_multiplier, sample_rate, steps)], DELTA, "rdp")

    assert spent <= target
    assert spent >= 0.97 * target or noise_multiplier < 0.5


@pytest.mark.parametrize(("target", "sample_rate", "steps"), [(6.0, 0.064, 50), (1.0, 0.02, 1000), (3.0, 1.0, 10)])
def test_calibration_with_prv(target: float, sample_rate: float, steps: int) -> None:
    noise_multiplier = calibrate(target, DELTA, sample_rate, steps)

    assert 0.98 * target <= epsilon([Spend(noise_multiplier, sample_rate, steps)], DELTA) <= target
    assert noise_multiplier < calibrate(target, DELTA, sample_rate, steps, "rdp")


@pytest.mark.parametrize(("target", "sample_rate", "steps"), [(30.0, 0.001, 5), (20.0, 0.001, 10)])
def test_calibration_with_the_least_noise_stays_within_the_budget(
    target: float, sample_rate: float, steps: int
) -> None:
    noise_multiplier = calibrate(target, DELTA, sample_rate, steps, "rdp")

    assert noise_multiplier == 0.25
    assert epsilon([Spend(noise_multiplier, sample_rate, steps)], DELTA, "rdp") <= target


def test_epsilon_is_rounded_up() -> None:
    found = epsilon([Spend(1.1, 0.03, 7)], DELTA, "rdp")

    assert found == math.ceil(found * 1e4 - 1e-6) / 1e4


@pytest.mark.parametrize(
    "call",
    [
        lambda: Spend(0.0, 0.1, 1),
        lambda: Spend(float("nan"), 0.1, 1),
        lambda: Spend(1.0, 0.0, 1),
        lambda: Spend(1.0, 1.1, 1),
        lambda: Spend(1.0, 0.1, 0),
        lambda: epsilon([], 0.0),
        lambda: epsilon([], 1.0),
        lambda: epsilon([], DELTA, "pld"),
        lambda: calibrate(0.0, DELTA, 0.1, 1),
        lambda: calibrate(float("inf"), DELTA, 0.1, 1),
    ],
)
def test_invalid_inputs_are_rejected(call: object) -> None:
    with pytest.raises(PrivacyError):
        call()  # type: ignore[operator]


def test_budget_that_no_noise_satisfies_is_rejected() -> None:
    with pytest.raises(PrivacyError, match="larger ε"):
        calibrate(1e-4, 1e-9, 1.0, 10**6, "rdp")


def test_tiny_delta_is_rejected_for_prv_only() -> None:
    with pytest.raises(PrivacyError, match="accountant = rdp"):
        epsilon([Spend(2.0, 1.0, 4)], 1e-14)
    assert epsilon([Spend(2.0, 1.0, 4)], 1e-14, "rdp") > 7.88


def test_epsilon_is_monotonic_across_the_switch_to_the_finer_bound() -> None:
    steps = range(1, 60, 4)
    found = [epsilon([Spend(2.0, 0.1, count)], DELTA) for count in steps]

    assert found[0] < 1 < found[-1]
    assert all(math.isfinite(value) for value in found)
    assert found == sorted(found)


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_renyi_curve_is_cached_across_step_counts(accountant: str) -> None:
    few = epsilon([Spend(1.234, 0.05, 3)], DELTA, accountant)
    computed = renyi._compute_rdp.cache_info().misses
    assert few < epsilon([Spend(1.234, 0.05, 4)], DELTA, accountant)
    assert renyi._compute_rdp.cache_info().misses == computed
    assert renyi._compute_rdp(0.05, 1.234, 2.5) == renyi._compute_rdp.__wrapped__(0.05, 1.234, 2.5)


def test_interpolation_follows_a_power_of_the_noise_and_stays_inside_the_bracket() -> None:
    used = accounting._MIN_BUDGET_USE
    # Between ε = 8 at σ = 1 and ε = 2 at σ = 2, ε is 8 / σ².
    target = 4 * 2 / (1 + used)
    assert accounting._interpolate_noise(1.0, 8.0, 2.0, 2.0, target) == pytest.approx(2**0.5)
    # While the lower end is unknown, ε is 2 · 2 / σ.
    assert accounting._interpolate_noise(0.0, math.inf, 2.0, 2.0, target) == pytest.approx(1.0)
    nearly_high = accounting._interpolate_noise(1.0, 8.0, 2.0, 2.0, 2.0)
    assert nearly_high == pytest.approx(2 * 0.5**0.05)
    assert accounting._interpolate_noise(1.0, 8.0, 2.0, 2.0, 8.0) == pytest.approx(2 * 0.5**0.95)


def test_a_small_epsilon_is_computed_on_a_finer_mesh() -> None:
    # The coarse bound exceeds it by 0.01.
    assert epsilon([Spend(20.0, 0.01, 10)], 1e-5) < 0.004

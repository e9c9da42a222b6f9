"""Rounding to the resolution of a secure sum: the distribution of sums of rounded values, and norms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsvd.secagg import vectors
from fedsvd.secagg.rounding import MIN_NOISE_STD, resolution, rounding_norm

CELLS = np.arange(-30, 31)


def bound(std: float) -> float:
    """Return r of the derivation, for noise in units of the resolution."""
    return 2 * sum(math.exp(-((math.pi * multiple * std) ** 2)) for multiple in range(1, 20))


def rounded(mean: float, std: float) -> np.ndarray:
    """Return the probabilities of a rounded Gaussian."""
    upper = stats.norm.sf((CELLS - 0.5 - mean) / std) - stats.norm.sf((CELLS + 0.5 - mean) / std)
    return np.asarray(upper)


@pytest.mark.parametrize("std", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("mean", [0.0, 0.25, 0.5])
def test_a_sum_of_rounded_values_is_nearly_the_rounded_noisy_sum(std: float, mean: float) -> None:
    of_each = np.convolve(rounded(mean, std), rounded(0.0, std), mode="same")
    # The mean over the uniform numbers, by the midpoint rule.
    dithers = (np.arange(2000) + 0.5) / 2000 - 0.5
    of_sum = np.mean([rounded(mean + dither, math.sqrt(2) * std) for dither in dithers], axis=0)

    likely = of_sum > 1e-9
    errors = of_each[likely] / of_sum[likely] - 1
    assert np.abs(errors).max() <= bound(std) + 1e-5
    # The bound is not loose.
    assert mean or np.abs(errors).max() > 0.3 * bound(std)


def test_the_smallest_share_of_the_noise_costs_nothing() -> None:
    clients, values, rounds = 10**6, 10**10, 10**6
    assert 2 * clients * values * rounds * bound(MIN_NOISE_STD) < 1e-15


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=50), st.integers(-12, 2), st.integers(0, 99))
def test_rounding_adds_no_more_than_the_bound_to_an_update(start: list[float], exponent: int, seed: int) -> None:
    before = np.array(start)
    update = np.random.default_rng(seed).normal(size=len(start)) * 10.0**exponent
    size = np.linalg.norm(update)

    encoded = vectors.encode((before + update).astype(np.float32), 1, 4)
    sent = vectors.decode(encoded)[0] - before

    assert np.linalg.norm(sent - update) <= rounding_norm(float(np.linalg.norm(before)), len(start), float(size))


@pytest.mark.parametrize("largest", [0.0, 0.3, 1.0, 1.9, 700.0])
def test_the_resolution_is_that_of_float32_for_large_parameters(largest: float) -> None:
    spacing = float(np.spacing(np.float32(largest)))
    assert resolution(largest) >= max(spacing, 2.0**-vectors.FRACTION_BITS)
    assert resolution(largest) <= 2 * max(spacing, 2.0**-vectors.FRACTION_BITS)

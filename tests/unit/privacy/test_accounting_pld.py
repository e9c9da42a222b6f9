"""Comparison of ε with an independent accountant: privacy loss distributions (dp-accounting)."""

import logging
import sys
from collections.abc import Sequence

import pytest
from absl import logging as absl_logging
from dp_accounting.pld import privacy_loss_distribution as pld

from fedsvd.privacy.accounting import MIN_PRV_DELTA, Spend, calibrate, epsilon

# absl's handler would use the stream that pytest captures, and close it when Hydra reconfigures logging.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

pytestmark = pytest.mark.slow

DELTA = 1e-5
# Noise multiplier, sample rate, steps.
SINGLE = [
    (0.5, 0.02, 50), (0.6, 0.01, 10), (0.8, 0.13, 20), (1.5, 0.37, 20), (1.0, 0.05, 1000), (4.0, 0.01, 5000),
    (2.0, 1.0, 4), (5.0, 1.0, 100), (20.0, 1.0, 10), (10.0, 0.1, 200), (50.0, 0.5, 10), (1.0, 0.001, 1000),
]  # fmt: skip
TINY = [(1.0, 1e-5, 100), (2.0, 0.001, 100), (1.0, 1e-4, 300)]
SEVERAL = [
    [(1.0, 0.05, 100), (2.0, 0.1, 50), (0.8, 0.01, 20)],
    [(3.0, 1.0, 5), (1.2, 0.002, 300)],
    [(1.1, 0.2, 3), (1.3, 0.2, 3), (1.7, 0.25, 7), (6.0, 0.9, 10)],
    [(9.0, 0.3, 1), (0.9, 0.03, 1), (30.0, 1.0, 40), (1.4, 0.004, 200), (2.2, 0.08, 16)],
]


@pytest.fixture(autouse=True)
def silence_logging(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


def reference(history: Sequence[Spend], *, pessimistic: bool, interval: float, delta: float = DELTA) -> float:
    composed = None
    for spend in history:
        part = pld.from_gaussian_mechanism(
            spend.noise_multiplier,
            sampling_prob=spend.sample_rate,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
            value_discretization_interval=interval,
        ).self_compose(spend.steps)
        composed = part if composed is None else composed.compose(part)
    assert composed is not None
    return float(composed.get_epsilon_for_delta(delta))


def spends(mechanisms: Sequence[tuple[float, float, int]]) -> list[Spend]:
    return [Spend(*row) for row in mechanisms]


@pytest.mark.parametrize("mechanisms", [*([row] for row in SINGLE), *SEVERAL])
def test_prv_agrees_within_two_percent_and_is_not_below(mechanisms: list[tuple[float, float, int]]) -> None:
    history = spends(mechanisms)
    ours = epsilon(history, DELTA)

    assert ours == pytest.approx(reference(history, pessimistic=True, interval=1e-4), rel=0.02)
    # The optimistic estimate loses about half a discretization interval per step.
    assert ours >= reference(history, pessimistic=False, interval=1e-4)


@pytest.mark.parametrize("row", TINY)
def test_prv_at_tiny_rates_is_within_a_thousandth(row: tuple[float, float, int]) -> None:
    history = spends([row])
    ours = epsilon(history, DELTA)

    assert ours >= reference(history, pessimistic=False, interval=1e-5)
    assert ours - reference(history, pessimistic=True, interval=1e-5) < 1e-3


@pytest.mark.parametrize("mechanisms", [[SINGLE[3]], [SINGLE[7]], SEVERAL[2]])
def test_rdp_is_above_the_reference_and_within_twenty_percent(mechanisms: list[tuple[float, float, int]]) -> None:
    history = spends(mechanisms)
    exact = reference(history, pessimistic=True, interval=1e-4)

    assert exact <= epsilon(history, DELTA, "rdp") <= 1.2 * exact


@pytest.mark.parametrize("delta", [1e-3, 1e-8, MIN_PRV_DELTA])
def test_prv_agrees_at_other_deltas(delta: float) -> None:
    for row in ((0.8, 0.3, 20), (2.0, 1.0, 4)):
        ours = epsilon(spends([row]), delta)

        assert reference(spends([row]), pessimistic=False, interval=1e-4, delta=delta) <= ours
        assert ours == pytest.approx(reference(spends([row]), pessimistic=True, interval=1e-4, delta=delta), rel=0.02)


@pytest.mark.parametrize(("target", "rate", "steps"), [(6.0, 0.37, 20), (1.0, 0.02, 300), (0.2, 0.05, 100)])
def test_calibrated_noise_is_within_the_budget_of_the_other_accountant(target: float, rate: float, steps: int) -> None:
    noise_multiplier = calibrate(target, DELTA, rate, steps)
    found = reference([Spend(noise_multiplier, rate, steps)], pessimistic=True, interval=2e-5 * target)

    assert 0.97 * target <= found <= target

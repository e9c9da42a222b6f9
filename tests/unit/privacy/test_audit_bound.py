"""The one-run bound, compared with enumeration, the paper's numbers, and mechanisms whose ε is known."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fedsvd.errors import PrivacyError
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.audit_bound import (
    GuessCounts,
    audit_scores,
    count_correct,
    epsilon_lower_bound,
    largest_bound,
    p_value,
    plan_guesses,
)


def test_p_values_with_delta_zero_equal_enumeration() -> None:
    chance = 3 / 4  # e^ε / (1 + e^ε) at ε = log 3
    for num_correct in range(7):
        exact = sum(
            chance ** sum(coins) * (1 - chance) ** (6 - sum(coins))
            for coins in itertools.product((0, 1), repeat=6)
            if sum(coins) >= num_correct
        )
        assert p_value(9, 6, num_correct, math.log(3), 0.0) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "delta", "published"),
    # arXiv 2305.08846: Appendix D, and section 7 (printed there without rounding).
    [((1000, 100, 75), 1e-4, 0.673), ((100_000, 1510, 1439), 1e-5, 2.675)],
)
def test_bounds_match_the_paper(counts: tuple[int, int, int], delta: float, published: float) -> None:
    assert epsilon_lower_bound(*counts, delta, 0.95) == pytest.approx(published, abs=1e-3)


def test_the_formula_with_delta_by_hand() -> None:
    # r = v = 2, ε = 0: f(2) = 1/4, f(1) = 3/4, f(0) = 1, so the slopes are 1/2 and 3/8.
    assert p_value(10, 2, 2, 0.0, 0.01) == pytest.approx(1 / 4 + 2 * 10 * 0.01 * 1 / 2)
    # v = 1: f(1) = 3/4, f(0) = 1.
    assert p_value(10, 2, 1, 0.0, 0.01) == pytest.approx(3 / 4 + 2 * 10 * 0.01 * 1 / 4)


@pytest.mark.parametrize("true_epsilon", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("size", [20, 400])
def test_randomized_response_violates_the_bound_at_most_as_often_as_allowed(true_epsilon: float, size: int) -> None:
    values = np.arange(size + 1)
    chances = binom.pmf(values, size, 1 / (1 + math.exp(-true_epsilon)))
    violated = [epsilon_lower_bound(size, size, int(v), 0.0, 0.9) > true_epsilon + 1e-6 for v in values]
    assert chances[violated].sum() <= 0.1 + 1e-9


@pytest.mark.parametrize("delta", [1e-4, 1e-2])
@pytest.mark.parametrize("revealed", ["each", "all"])
def test_mechanisms_that_use_delta_violate_the_bound_at_most_as_often_as_allowed(delta: float, revealed: str) -> None:
    """Randomized response that reveals each bit, or all bits at once, with probability δ is (ε, δ)-private."""
    size, true_epsilon = 200, 1.0
    chance, values = 1 / (1 + math.exp(-true_epsilon)), np.arange(size + 1)
    if revealed == "each":
        chances = binom.pmf(values, size, delta + (1 - delta) * chance)
    else:
        chances = (1 - delta) * binom.pmf(values, size, chance)
        chances[-1] += delta
    violated = [epsilon_lower_bound(size, size, int(v), delta, 0.95) > true_epsilon + 1e-6 for v in values]
    assert chances[violated].sum() <= 0.05 + 1e-9


def test_bound_is_close_to_the_true_epsilon_with_many_canaries() -> None:
    chance = 1 / (1 + math.exp(-2.0))
    assert 1.9 < epsilon_lower_bound(20_000, 20_000, int(20_000 * chance), 0.0) < 2.0


@given(
    size=st.integers(1, 300),
    guesses=st.floats(0, 1),
    share=st.floats(0, 1),
    claim=st.floats(0, 8),
    delta=st.floats(0, 0.01),
)
def test_p_values_are_monotonic(size: int, guesses: float, share: float, claim: float, delta: float) -> None:
    num_guesses = round(guesses * size)
    correct = round(share * num_guesses)
    found = p_value(size, num_guesses, correct, claim, delta)

    assert 0 <= found <= 1
    assert p_value(size, num_guesses, correct, claim, 0.0) <= found + 1e-12
    assert p_value(size + 50, num_guesses, correct, claim, delta) >= found - 1e-12
    if correct < num_guesses:
        assert (
            p_value(size, num_guesses, correct + 1, claim, 0.0)
            <= p_value(size, num_guesses, correct, claim, 0.0) + 1e-12
        )
    assert (
        p_value(size, num_guesses, correct, claim + 0.5, 0.0) >= p_value(size, num_guesses, correct, claim, 0.0) - 1e-12
    )


@given(num_guesses=st.integers(1, 200), share=st.floats(0.5, 1), delta=st.sampled_from([0.0, 1e-5, 1e-3]))
def test_bound_separates_refuted_from_unrefuted_epsilons(num_guesses: int, share: float, delta: float) -> None:
    correct = round(share * num_guesses)
    bound = epsilon_lower_bound(200, num_guesses, correct, delta)

    assert bound >= epsilon_lower_bound(200, num_guesses, correct, delta, 0.99) >= 0
    assert p_value(200, num_guesses, correct, bound + 1e-3, delta) >= 0.05 - 1e-9
    if bound > 0:
        assert p_value(200, num_guesses, correct, bound, delta) < 0.05
        assert p_value(200, num_guesses, correct, bound / 2, delta) < 0.05


def test_correct_guesses_are_counted_at_both_ends() -> None:
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    included = np.array([True, False, True, True, False])

    assert count_correct(scores, included, GuessCounts(2, 0)) == 1
    assert count_correct(scores, included, GuessCounts(0, 2)) == 1
    assert count_correct(scores, included, GuessCounts(1, 1)) == 2
    assert count_correct(scores, included, GuessCounts(0, 0)) == 0


def test_several_tests_share_the_confidence() -> None:
    scores, included = np.arange(400.0)[::-1], np.arange(400) < 200
    both = audit_scores(scores, included, (GuessCounts(200, 200), GuessCounts(5, 0)), 0.0, 0.95)

    assert (both.num_guesses, both.num_correct) == (400, 400)
    assert both.epsilon == epsilon_lower_bound(400, 400, 400, 0.0, 0.975)
    assert both.epsilon < epsilon_lower_bound(400, 400, 400, 0.0, 0.95)


def test_delta_limits_the_largest_bound() -> None:
    assert largest_bound(100, 0.0, 0.95) == pytest.approx(epsilon_lower_bound(100, 100, 100, 0.0), abs=1e-6)
    # With δ = 0, ten times as many canaries raise the bound by log 10.
    assert largest_bound(20_000, 0.0, 0.95) - largest_bound(2000, 0.0, 0.95) == pytest.approx(math.log(10), abs=0.01)
    assert largest_bound(20_000, 1e-3, 0.95) - largest_bound(2000, 1e-3, 0.95) < 0.3


@pytest.mark.slow
def test_gaussian_mechanism_satisfies_its_claim_and_is_refuted_without_noise() -> None:
    spend = Spend(1.5, 0.4, 20)
    claim, rng = epsilon([spend], 1e-5), np.random.default_rng(3)
    tests = tuple(plan_guesses(2000, share * 1.5, 0.4, 20, 1e-5, 0.975, rng) for share in (1.0, 0.05))
    bounds: dict[bool, list[float]] = {True: [], False: []}
    for noisy in bounds:
        for _ in range(20):
            included = rng.random(2000) < 0.5
            scores = rng.binomial(20, 0.4, 2000) * included + rng.normal(0, 1.5 * 20**0.5, 2000) * noisy
            bounds[noisy].append(audit_scores(scores, included, tests, 1e-5, 0.95).epsilon)

    assert max(bounds[True]) < claim
    assert np.median(bounds[True]) > 0.25 * claim
    assert min(bounds[False]) > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 11, 5, 1.0, 0.0), "canaries"),
        ((10, 5, 6, 1.0, 0.0), "num_correct = 6, num_guesses = 5"),
        ((10, 5, 5, -1.0, 0.0), "ε = -1.0"),
        ((10, 5, 5, 1.0, 1.0), "δ = 1.0"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: tuple[int, int, int, float, float], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        p_value(*arguments)


def test_confidence_of_one_is_rejected() -> None:
    with pytest.raises(PrivacyError, match="confidence"):
        epsilon_lower_bound(10, 5, 5, 0.0, 1.0)


def test_planned_guesses_gain_most_where_nearly_all_are_correct() -> None:
    # Without sampling and with little noise, nearly all canaries can be guessed; with much noise, nothing is gained.
    clear = plan_guesses(100, 0.1, 1.0, 4, 1e-5, 0.95, np.random.default_rng(0))
    assert clear.total >= 95
    # The default.
    assert plan_guesses(100, 1e6, 1.0, 4, 1e-5, 0.95, np.random.default_rng(0)) == GuessCounts(25, 25)

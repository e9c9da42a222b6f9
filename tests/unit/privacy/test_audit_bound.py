"""The one-run bound against enumeration, the paper's own numbers, and mechanisms whose ε is known."""

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
    Guesses,
    audit_scores,
    count_correct,
    epsilon_lower_bound,
    largest_bound,
    p_value,
    plan_guesses,
)


def test_p_values_of_pure_privacy_are_those_of_enumerated_coins() -> None:
    chance = 3 / 4  # e^ε / (1 + e^ε) at ε = log 3
    for wanted in range(7):
        exact = sum(
            chance ** sum(coins) * (1 - chance) ** (6 - sum(coins))
            for coins in itertools.product((0, 1), repeat=6)
            if sum(coins) >= wanted
        )
        assert p_value(9, 6, wanted, math.log(3), 0.0) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "delta", "published"),
    # arXiv 2305.08846: Appendix D, and section 7 (printed there without rounding).
    [((1000, 100, 75), 1e-4, 0.673), ((100_000, 1510, 1439), 1e-5, 2.675)],
)
def test_bounds_are_those_of_the_paper(counts: tuple[int, int, int], delta: float, published: float) -> None:
    assert epsilon_lower_bound(*counts, delta, 0.95) == pytest.approx(published, abs=1e-3)


def test_the_formula_with_delta_by_hand() -> None:
    # r = v = 2, ε = 0: f(2) = 1/4, f(1) = 3/4, f(0) = 1, so the slopes are 1/2 and 3/8.
    assert p_value(10, 2, 2, 0.0, 0.01) == pytest.approx(1 / 4 + 2 * 10 * 0.01 * 1 / 2)
    # v = 1: f(1) = 3/4, f(0) = 1.
    assert p_value(10, 2, 1, 0.0, 0.01) == pytest.approx(3 / 4 + 2 * 10 * 0.01 * 1 / 4)


@pytest.mark.parametrize("true_epsilon", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("size", [20, 400])
def test_randomised_response_is_not_accused_more_often_than_agreed(true_epsilon: float, size: int) -> None:
    values = np.arange(size + 1)
    chances = binom.pmf(values, size, 1 / (1 + math.exp(-true_epsilon)))
    accused = [epsilon_lower_bound(size, size, int(v), 0.0, 0.9) > true_epsilon + 1e-6 for v in values]
    assert chances[accused].sum() <= 0.1 + 1e-9


@pytest.mark.parametrize("delta", [1e-4, 1e-2])
@pytest.mark.parametrize("shout", ["each", "all"])
def test_mechanisms_that_use_their_delta_are_not_accused_more_often_than_agreed(delta: float, shout: str) -> None:
    """Randomised response that says the truth with chance δ, of each bit or of all at once, is (ε, δ)-private."""
    size, true_epsilon = 200, 1.0
    honest, values = 1 / (1 + math.exp(-true_epsilon)), np.arange(size + 1)
    if shout == "each":
        chances = binom.pmf(values, size, delta + (1 - delta) * honest)
    else:
        chances = (1 - delta) * binom.pmf(values, size, honest)
        chances[-1] += delta
    accused = [epsilon_lower_bound(size, size, int(v), delta, 0.95) > true_epsilon + 1e-6 for v in values]
    assert chances[accused].sum() <= 0.05 + 1e-9


def test_many_canaries_come_close_to_the_truth() -> None:
    chance = 1 / (1 + math.exp(-2.0))
    assert 1.9 < epsilon_lower_bound(20_000, 20_000, int(20_000 * chance), 0.0) < 2.0


@given(
    size=st.integers(1, 300),
    guesses=st.floats(0, 1),
    share=st.floats(0, 1),
    claim=st.floats(0, 8),
    delta=st.floats(0, 0.01),
)
def test_p_values_move_the_right_way(size: int, guesses: float, share: float, claim: float, delta: float) -> None:
    made = round(guesses * size)
    correct = round(share * made)
    found = p_value(size, made, correct, claim, delta)

    assert 0 <= found <= 1
    assert p_value(size, made, correct, claim, 0.0) <= found + 1e-12
    assert p_value(size + 50, made, correct, claim, delta) >= found - 1e-12
    if correct < made:
        assert p_value(size, made, correct + 1, claim, 0.0) <= p_value(size, made, correct, claim, 0.0) + 1e-12
    assert p_value(size, made, correct, claim + 0.5, 0.0) >= p_value(size, made, correct, claim, 0.0) - 1e-12


@given(made=st.integers(1, 200), share=st.floats(0.5, 1), delta=st.sampled_from([0.0, 1e-5, 1e-3]))
def test_a_bound_refutes_what_is_below_it_and_nothing_above(made: int, share: float, delta: float) -> None:
    correct = round(share * made)
    bound = epsilon_lower_bound(200, made, correct, delta)

    assert bound >= epsilon_lower_bound(200, made, correct, delta, 0.99) >= 0
    assert p_value(200, made, correct, bound + 1e-3, delta) >= 0.05 - 1e-9
    if bound > 0:
        assert p_value(200, made, correct, bound, delta) < 0.05
        assert p_value(200, made, correct, bound / 2, delta) < 0.05


def test_guesses_are_counted_from_both_ends() -> None:
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    included = np.array([True, False, True, True, False])

    assert count_correct(scores, included, Guesses(2, 0)) == 1
    assert count_correct(scores, included, Guesses(0, 2)) == 1
    assert count_correct(scores, included, Guesses(1, 1)) == 2
    assert count_correct(scores, included, Guesses(0, 0)) == 0


def test_several_tests_share_the_confidence() -> None:
    scores, included = np.arange(400.0)[::-1], np.arange(400) < 200
    both = audit_scores(scores, included, (Guesses(200, 200), Guesses(5, 0)), 0.0, 0.95)

    assert (both.num_guesses, both.num_correct) == (400, 400)
    assert both.epsilon == epsilon_lower_bound(400, 400, 400, 0.0, 0.975)
    assert both.epsilon < epsilon_lower_bound(400, 400, 400, 0.0, 0.95)


def test_delta_limits_what_any_number_of_canaries_can_show() -> None:
    assert largest_bound(100, 0.0, 0.95) == pytest.approx(epsilon_lower_bound(100, 100, 100, 0.0), abs=1e-6)
    # Without δ, ten times the canaries show log 10 more.
    assert largest_bound(20_000, 0.0, 0.95) - largest_bound(2000, 0.0, 0.95) == pytest.approx(math.log(10), abs=0.01)
    assert largest_bound(20_000, 1e-3, 0.95) - largest_bound(2000, 1e-3, 0.95) < 0.3


def test_the_gaussian_mechanism_keeps_its_claim_and_is_seen_through_without_noise() -> None:
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
    ("numbers", "said"),
    [
        ((10, 11, 5, 1.0, 0.0), "canaries"),
        ((10, 5, 6, 1.0, 0.0), "6 right of 5"),
        ((10, 5, 5, -1.0, 0.0), "ε = -1.0"),
        ((10, 5, 5, 1.0, 1.0), "δ = 1.0"),
    ],
)
def test_impossible_numbers_are_refused(numbers: tuple[int, int, int, float, float], said: str) -> None:
    with pytest.raises(PrivacyError, match=said):
        p_value(*numbers)


def test_a_confidence_of_one_is_refused() -> None:
    with pytest.raises(PrivacyError, match="confidence"):
        epsilon_lower_bound(10, 5, 5, 0.0, 1.0)

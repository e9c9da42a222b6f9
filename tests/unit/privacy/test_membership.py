"""ROC curves and likelihood ratios, compared with hand-computed values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.privacy import membership
from fedsvd.privacy.membership import lira_scores, logit_confidence, roc
from fedsvd.report.roc import max_true_positive_rate


def test_curve_matches_hand_computed_values() -> None:
    curve = roc(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))

    assert curve.false_positive_rate.tolist() == [0, 0, 0.5, 0.5, 1]
    assert curve.true_positive_rate.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.auc == 0.75
    assert curve.tpr_at(0.0) == 0.5
    assert curve.tpr_at(0.5) == 1.0


def test_ties_give_a_single_point() -> None:
    curve = roc(np.zeros(6), np.array([True, False, True, False, False, False]))

    assert curve.false_positive_rate.tolist() == [0, 1]
    assert curve.auc == 0.5
    assert curve.tpr_at(0.01) == 0.0


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_probability_of_correct_ranking(rows: list[tuple[int, bool]]) -> None:
    scores, members = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    if members.all() or not members.any():
        return
    pairs = scores[members][:, None] - scores[~members][None, :]

    curve = roc(scores, members)

    assert curve.auc == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert (np.diff(curve.false_positive_rate) >= 0).all()
    assert (np.diff(curve.true_positive_rate) >= 0).all()
    assert curve.true_positive_rate[-1] == curve.false_positive_rate[-1] == 1


def test_confidences_are_log_odds() -> None:
    probabilities = np.array([0.5, 0.9, 0.001])
    np.testing.assert_allclose(
        logit_confidence(-np.log(probabilities)), np.log(probabilities / (1 - probabilities)), rtol=1e-9
    )
    assert np.isfinite(logit_confidence(np.array([0.0, 1e-30, 900.0]))).all()


def test_likelihood_ratios_match_hand_computed_values() -> None:
    """Two examples and four shadow models: std 1 (means 2 and 5) if trained with the example, else 2 (means 0, 0)."""
    trained_with = np.array([[True, False], [False, True], [True, False], [False, True]])
    half, two = np.sqrt(0.5), np.sqrt(2.0)
    shadows = np.array([[2 - half, -two], [-two, 5 - half], [2 + half, two], [two, 5 + half]])
    target = np.array([2.0, 3.0])

    scores = lira_scores(target, shadows, trained_with)

    expected = [0.0 + 0.5 * (2 / 2) ** 2 + np.log(2), -0.5 * (2 / 1) ** 2 + 0.5 * (3 / 2) ** 2 + np.log(2)]
    np.testing.assert_allclose(scores, expected)


def test_shadow_models_help_if_difficulty_varies() -> None:
    """Difficulty varies more than the effect of membership, so a threshold on the loss is nearly uninformative."""
    rng = np.random.default_rng(0)
    difficulty, trained_with = rng.normal(0, 5, 400), np.tile([[True], [False]], (8, 400))
    trained_with[::2, ::2], trained_with[1::2, ::2] = False, True
    members = rng.random(400) < 0.5
    shadows = difficulty + trained_with + rng.normal(0, 0.5, trained_with.shape)
    target = difficulty + members + rng.normal(0, 0.5, 400)

    assert roc(target, members).auc < 0.65
    assert roc(lira_scores(target, shadows, trained_with), members).auc > 0.85


def test_max_true_positive_rate_of_a_claim() -> None:
    rates = np.array([0.0, 0.1, 0.5, 1.0])
    np.testing.assert_allclose(max_true_positive_rate(rates, 0.0, 0.0), rates, atol=1e-12)
    np.testing.assert_allclose(
        max_true_positive_rate(rates, np.log(3), 0.01), [0.01, 0.31, 1 - (1 - 0.01 - 0.5) / 3, 1.0]
    )


def test_one_degree_of_freedom_suffices() -> None:
    # Models with the example: mean 1, variance 2. The other one: mean 1, the least deviation.
    score = lira_scores(np.array([1.0]), np.array([[0.0], [2.0], [1.0]]), np.array([[True], [True], [False]]))
    least = membership._MIN_STD
    np.testing.assert_allclose(score, [-0.5 * np.log(2.0) + np.log(least)])

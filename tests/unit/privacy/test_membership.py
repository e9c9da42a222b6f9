"""ROC curves and likelihood ratios, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.privacy.membership import lira_scores, logit_confidence, roc
from fedsvd.report.roc import allowed_rate


def test_a_curve_by_hand() -> None:
    curve = roc(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))

    assert curve.false_positive_rate.tolist() == [0, 0, 0.5, 0.5, 1]
    assert curve.true_positive_rate.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.auc == 0.75
    assert curve.tpr_at(0.0) == 0.5
    assert curve.tpr_at(0.5) == 1.0


def test_ties_are_one_point() -> None:
    curve = roc(np.zeros(6), np.array([True, False, True, False, False, False]))

    assert curve.false_positive_rate.tolist() == [0, 1]
    assert curve.auc == 0.5
    assert curve.tpr_at(0.01) == 0.0


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_the_area_is_the_chance_of_the_right_order(rows: list[tuple[int, bool]]) -> None:
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
    chances = np.array([0.5, 0.9, 0.001])
    np.testing.assert_allclose(logit_confidence(-np.log(chances)), np.log(chances / (1 - chances)), rtol=1e-9)
    assert np.isfinite(logit_confidence(np.array([0.0, 1e-30, 900.0]))).all()


def test_likelihood_ratios_by_hand() -> None:
    """Two examples, four shadow models; inside the spread is 1 (means 2 and 5), outside 2 (means 0 and 0)."""
    inside = np.array([[True, False], [False, True], [True, False], [False, True]])
    half, two = np.sqrt(0.5), np.sqrt(2.0)
    shadows = np.array([[2 - half, -two], [-two, 5 - half], [2 + half, two], [two, 5 + half]])
    target = np.array([2.0, 3.0])

    scores = lira_scores(target, shadows, inside)

    expected = [0.0 + 0.5 * (2 / 2) ** 2 + np.log(2), -0.5 * (2 / 1) ** 2 + 0.5 * (3 / 2) ** 2 + np.log(2)]
    np.testing.assert_allclose(scores, expected)


def test_shadow_models_help_where_losses_alone_mislead() -> None:
    """Examples are unlike in difficulty, more than membership moves any: a threshold on the loss is nearly blind."""
    rng = np.random.default_rng(0)
    difficulty, inside = rng.normal(0, 5, 400), np.tile([[True], [False]], (8, 400))
    inside[::2, ::2], inside[1::2, ::2] = False, True
    members = rng.random(400) < 0.5
    shadows = difficulty + inside + rng.normal(0, 0.5, inside.shape)
    target = difficulty + members + rng.normal(0, 0.5, 400)

    assert roc(target, members).auc < 0.65
    assert roc(lira_scores(target, shadows, inside), members).auc > 0.85


def test_what_a_claim_allows() -> None:
    rates = np.array([0.0, 0.1, 0.5, 1.0])
    np.testing.assert_allclose(allowed_rate(rates, 0.0, 0.0), rates, atol=1e-12)
    np.testing.assert_allclose(allowed_rate(rates, np.log(3), 0.01), [0.01, 0.31, 1 - (1 - 0.01 - 0.5) / 3, 1.0])

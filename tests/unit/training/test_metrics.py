"""Metrics of a held-out set, on predictions whose metrics can be computed by hand."""

import math

import pytest
import torch

from fedsvd.training.metrics import class_metrics, label_metrics, span_metrics, value_metrics


def test_class_metrics_of_three_classes() -> None:
    # Class 0: 1 of 2 found, 2 predicted; class 1: 1 of 1 found, 2 predicted; class 2: 1 of 2 found, 1 predicted.
    probabilities = [[0.7, 0.2, 0.1], [0.3, 0.55, 0.15], [0.05, 0.6, 0.35], [0.6, 0.08, 0.32], [0.1, 0.25, 0.65]]
    labels = torch.tensor([0, 0, 1, 2, 2])

    found = class_metrics(torch.tensor(probabilities).log(), labels)

    assert found["accuracy"] == 0.6
    # 2 · found / (predicted + actual).
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    # The pairs of a row of the class and another row that are in order.
    assert found["auroc"] == pytest.approx((5 / 6 + 4 / 4 + 5 / 6) / 3)


def test_two_classes_have_the_auroc_of_the_second() -> None:
    found = class_metrics(torch.tensor([[0.0, 1], [0, 2], [0, 3], [0, 4]]), torch.tensor([0, 1, 0, 1]))

    # 3 of the 4 pairs are in order.
    assert found["auroc"] == 0.75
    assert found["accuracy"] == 0.5


def test_auroc_is_left_out_where_a_class_has_no_example() -> None:
    found = class_metrics(torch.tensor([[0.0, 1, 2], [0, 2, 1]]), torch.tensor([2, 1]))

    assert found == {"accuracy": 1.0, "macro_f1": 1.0}


def test_a_diverged_model_has_no_metric_but_accuracy() -> None:
    assert class_metrics(torch.tensor([[float("nan"), 0.0], [0.0, 1.0]]), torch.tensor([1, 1])) == {"accuracy": 0.5}


def test_label_metrics_are_over_classes_that_occur_or_are_predicted() -> None:
    # Columns: 1 of 2 found, 1 predicted; 1 of 1 found, 3 predicted; neither occurs nor is predicted.
    logits = torch.tensor([[1.0, 2, -9], [-1, 1, -9], [-2, 3, -9], [-3, -1, -9]])
    labels = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])

    found = label_metrics(logits, labels)

    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert found["micro_f1"] == pytest.approx(4 / 7)
    assert found["accuracy"] == 0.5
    assert "auroc" not in found
    # All pairs of the first column are in order, and all of the second.
    assert label_metrics(logits[:, :2], labels[:, :2])["auroc"] == 1.0


def test_value_metrics_have_the_original_scale() -> None:
    found = value_metrics(torch.tensor([[0.1], [0.2], [0.9], [0.4]]), torch.tensor([0.0, 0.2, 0.4, 1.0]), scale=10.0)

    # Errors 1, 0, 5, 6; ranks 1 2 4 3 and 1 2 3 4.
    assert found["rmse"] == pytest.approx(math.sqrt((1 + 25 + 36) / 4))
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    # Deviations from the means 0.4 and 0.4: products 0.12 + 0.04 + 0 + 0, squares 0.38 and 0.56.
    assert found["pearson"] == pytest.approx(0.16 / math.sqrt(0.38 * 0.56))


def test_correlations_are_left_out_where_all_predictions_are_equal() -> None:
    assert value_metrics(torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 3.0]), 1.0) == {"rmse": math.sqrt(2)}


def test_span_metrics_count_whole_spans() -> None:
    right = [["B-A", "I-A", "O", "B-B"], ["O", "B-A", "B-A"]]
    predicted = [["B-A", "I-A", "O", "B-A"], ["B-B", "B-A", "I-A"]]

    # Of 4 spans, the first is found; 4 are predicted. 4 of 7 tags are right.
    found = span_metrics(predicted, right)
    assert found == pytest.approx({"accuracy": 4 / 7, "span_f1": 0.25, "span_precision": 0.25, "span_recall": 0.25})
    assert span_metrics([["O", "O"]], [["O", "B-A"]]) == {"accuracy": 0.5, "span_f1": 0.0, "span_recall": 0.0}
    assert span_metrics([["O"]], [["O"]]) == {"accuracy": 1.0}

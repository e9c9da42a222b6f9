"""Metrics of the clients' personalized models."""

from fedsvd.wire.train_messages import ClientReport
from server.personal_metrics import mean_personal_metrics


def test_means_are_over_the_clients_that_evaluated_and_a_regression_has_no_accuracy() -> None:
    idle = ClientReport(0, 10, 1.0)
    classifiers = [ClientReport(1, 10, 1.0, accuracy=0.5, loss=0.25), ClientReport(2, 90, 1.0, accuracy=1.0, loss=0.75)]
    regressions = [ClientReport(1, 10, 1.0, loss=0.25), ClientReport(2, 90, 1.0, loss=0.75)]

    assert mean_personal_metrics([idle]) == {}
    assert mean_personal_metrics([idle, *classifiers]) == {"accuracy": 0.75, "loss": 0.5}
    assert mean_personal_metrics([idle, *regressions]) == {"accuracy": None, "loss": 0.5}

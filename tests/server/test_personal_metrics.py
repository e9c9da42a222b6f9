"""Metrics of the clients' personalized models."""

from fedsvd.wire.train_messages import ClientReport
from server.personal_metrics import mean_personal_metrics


def reports(*metrics: dict[str, float]) -> list[ClientReport]:
    """Return the reports of a client that evaluated nothing, and of two clients with the losses 0.25 and 0.75."""
    evaluated = [ClientReport(1 + k, 10 + 80 * k, 1.0, loss=0.25 + k / 2, metrics=m) for k, m in enumerate(metrics)]
    return [ClientReport(0, 10, 1.0), *evaluated]


def test_means_are_over_the_clients_that_evaluated() -> None:
    assert mean_personal_metrics(reports()) == {}
    classifiers = reports({"accuracy": 0.5, "auroc": 0.75}, {"accuracy": 1.0, "auroc": 0.25})
    assert mean_personal_metrics(classifiers) == {"accuracy": 0.75, "auroc": 0.5, "loss": 0.5}


def test_an_undefined_metric_is_averaged_over_the_other_clients() -> None:
    regressions = reports({"spearman": -0.5, "rmse": 2.0}, {"rmse": 4.0})
    assert mean_personal_metrics(regressions) == {"accuracy": None, "spearman": -0.5, "rmse": 3.0, "loss": 0.5}

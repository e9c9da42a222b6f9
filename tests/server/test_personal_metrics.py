"""Metrics of the clients' personalized models."""

from typing import Any

import pytest

from fedsvd.config.compose import compose
from fedsvd.methods import build_run_method
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire.train_messages import ClientReport
from server.evaluation import RoundEndCallback
from server.personal_metrics import mean_personal_metrics
from server.replies import RoundRecord
from server.strategy import FederatedLoRA


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


def evaluated(this_round: int, *metrics: dict[str, float]) -> dict[str, Any]:
    """Return the metrics of the row of a round in which clients reported these."""
    callback = RoundEndCallback.__new__(RoundEndCallback)
    callback.config = compose(["experiment=smoke", "method=fedsa_lora", "train.num_rounds=4", "train.eval_every=2"])
    method = build_run_method(callback.config)
    callback.strategy = FederatedLoRA(method, callback.config, initial_adapter(callback.config, method))
    personal = mean_personal_metrics(reports(*metrics))
    callback.strategy.round = RoundRecord(this_round, 2, personal_metrics=personal)
    return callback._evaluate(this_round)


def test_a_round_without_a_personalized_model_has_no_metrics(caplog: pytest.LogCaptureFixture) -> None:
    unknown = {"accuracy": None, "loss": None, "seconds_evaluate": 0.0}
    assert evaluated(2, {"accuracy": 0.75}) == {"accuracy": 0.75, "loss": 0.25, "seconds_evaluate": 0.0}
    # A round that is not evaluated.
    assert evaluated(3) == unknown
    assert not caplog.messages

    assert evaluated(2) == unknown

    assert caplog.messages == ["round 2 has no metrics: no client reported those of its own model"]


def test_before_training_all_personalized_models_are_the_initial_one() -> None:
    start = evaluated(0)
    assert 0 <= start["accuracy"] <= 1
    assert start["loss"] > 0

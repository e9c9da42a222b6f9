"""Secure rounds whose updates diverge, or whose sum has fewer updates than the run needs for a step."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_secure_grid import ROWS, Clients, make_config, run_round, value_of, weighted_mean

from fedsvd.errors import DivergedError
from fedsvd.secagg import vectors
from server.client_level import ClientLevelServer


@pytest.mark.parametrize("value", [math.nan, 1e20], ids=["nan", "too large"])
def test_run_ends_if_all_updates_of_a_secure_round_diverged(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_secure_grid.value_of", lambda number: value)
    with pytest.raises(DivergedError, match=r"all 5 updates of round 1 .* decrease train.learning_rate"):
        run_round(Clients(make_config(), {}))


def test_client_level_run_continues_so_that_its_length_reveals_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_secure_grid.value_of", lambda number: math.nan)
    config = make_config("privacy=client_level")
    strategy, _ = run_round(Clients(config, {}), ClientLevelServer(config, tmp_path / "ledger.sqlite"))
    assert (strategy.round.diverged, strategy.round.skipped) == (5, True)


def test_update_that_diverged_is_left_out_of_a_secure_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_secure_grid.value_of", lambda number: math.nan if number == 2 else value_of(number))
    strategy, _ = run_round(Clients(make_config(), {}))

    assert (strategy.round.diverged, strategy.round.skipped) == (1, False)
    assert "DivergedError: an entry of an update" in strategy.round.refused[2]
    assert strategy.adapter.B["s"].numpy() == pytest.approx(weighted_mean([0, 1, 3, 4]), abs=1e-6)


@pytest.mark.parametrize("stage", ["setup", "collect"])
@pytest.mark.parametrize(
    ("key", "enough", "too_few"),
    [("min_replies", "3", "4"), ("min_completion", "0.6", "0.61")],
    ids=["number", "share"],
)
def test_secure_sum_of_too_few_updates_leaves_the_model_unchanged(
    stage: str, key: str, enough: str, too_few: str, caplog: pytest.LogCaptureFixture
) -> None:
    dropouts = dict.fromkeys([1, 3], stage)
    strategy, grid = run_round(Clients(make_config(f"federation.{key}={too_few}"), dropouts))

    assert grid.outcome is not None
    assert strategy.round.skipped
    assert torch.equal(strategy.adapter.B["s"], torch.zeros(ROWS, 2))
    assert "3 valid replies of 5, at least 4 needed (federation.min_replies" in caplog.text

    strategy, _ = run_round(Clients(make_config(f"federation.{key}={enough}"), dropouts))
    assert not strategy.round.skipped
    assert strategy.adapter.B["s"].numpy() == pytest.approx(weighted_mean([0, 2, 4]), abs=1e-6)


@pytest.mark.parametrize(
    ("value", "weight", "overrides", "reason"),
    [
        (1e4, 3, [], "update norm 5657 is too large: the settings of this round allow at most 1000"),
        (0.1, 10**6, [], "the weights of 5 clients add up to 1000012: expected 5 to 500"),
        (0.1, 2, ["federation.weighting=uniform"], "the weights of 5 clients add up to 6: expected 5"),
        # What learning rate, clipping and noise allow.
        (
            500.0,
            3,
            ["privacy=dp_sgd", "privacy.noise_multiplier=0.01"],
            "update norm 283 is too large: the settings of this round allow at most 70.78",
        ),
    ],
)
def test_run_ends_if_a_sum_is_none_of_valid_updates(
    value: float, weight: int, overrides: list[str], reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    encode = vectors.encode

    def encode_of_attacker(values: np.ndarray, own: int, num_clients: int) -> np.ndarray:
        is_attacker = np.allclose(values, value_of(2))
        return (
            encode(np.full_like(values, value), weight, num_clients)
            if is_attacker
            else encode(values, own, num_clients)
        )

    monkeypatch.setattr(vectors, "encode", encode_of_attacker)
    limits = ["federation.max_num_examples=100", "federation.max_reply_norm=1000"]
    with pytest.raises(DivergedError, match=f"sum of round 1 is refused: {reason}.* none can be named.*waste privacy"):
        run_round(Clients(make_config(*limits, *overrides), {}))


@pytest.mark.parametrize("shares", [False, True])
def test_client_level_log_has_no_number_of_a_refused_sum(
    shares: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("test_secure_grid.value_of", lambda number: 1e4)
    config = make_config("privacy=client_level", *(["privacy.noise_share=true"] if shares else []))
    level = ClientLevelServer(config, tmp_path / "ledger.sqlite")
    monkeypatch.setattr(level, "sample_clients", lambda: [0, 1, 2, 3])
    strategy, _ = run_round(Clients(config, {}), level)
    assert (strategy.round.skipped, strategy.round.is_charged) == (True, shares)
    [message] = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert "because an update in it is not clipped, or its weight is not 1. Single updates are hidden" in message
    assert strategy.round.refusal in message


def test_shared_noise_may_exceed_the_bound_of_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_secure_grid.value_of", lambda number: 1e3)
    shared = ["privacy=client_level", "privacy.noise_share=true", "federation.max_reply_norm=2"]
    for sigma, is_refused in ((1, True), (1e5, False)):
        config = make_config(*shared, f"privacy.noise_multiplier={sigma}", "privacy.target_epsilon=50")
        level = ClientLevelServer(config, tmp_path / f"{sigma}.sqlite")
        strategy, _ = run_round(Clients(config, {}), level)
        assert strategy.round.skipped == is_refused

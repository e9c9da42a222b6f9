"""Secure rounds whose updates diverge, or whose sum has fewer updates than the run needs for a step."""

import math
from pathlib import Path

import pytest
import torch
from test_secure_grid import ROWS, Clients, make_config, run_round, value_of, weighted_mean

from fedsvd.errors import DivergedError
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

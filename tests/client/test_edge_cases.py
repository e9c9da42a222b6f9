"""Local rounds with extreme data and settings, and their warnings and errors."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from client_rounds import run_first_round, uplink_b
from node_messages import decline_reason

import client.local_round
from client.node_check import check_node
from client.setting_warnings import _warn_once
from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, DataError, RunError
from fedsvd.privacy.ledger import Ledger
from fedsvd.runtime.data import load_client_data
from fedsvd.wire import train_messages

ONE_CLIENT = ["federation.num_clients=1", "partition=iid", "partition.min_partition_size=1"]


@pytest.mark.slow
@pytest.mark.parametrize("privacy", ["dp_sgd", "client_level", "none"])
def test_client_with_one_example_takes_part(privacy: str, tmp_path: Path) -> None:
    config = compose(["experiment=smoke", f"privacy={privacy}", "data.max_train_examples=1", *ONE_CLIENT])
    assert len(load_client_data(config, 0).examples) == 1

    content = run_first_round(config, tmp_path)

    assert torch.isfinite(uplink_b(config, content)).all()
    assert train_messages.read_train_reply(content)[0].num_examples == 1


def test_client_without_examples_declines_before_spending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["experiment=smoke"])
    data = load_client_data(config, 0)
    empty = replace(data, examples=data.examples.select([]))
    monkeypatch.setattr(client.local_round, "load_client_data", lambda *_: empty)

    with pytest.raises(DataError, match="client 0 has no examples"):
        run_first_round(config, tmp_path)
    assert not (tmp_path / "ledger.sqlite").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=fedsa_lora", "privacy=client_level"], "no noise protects them"),
        (["method=flora", "privacy=client_level"], "privacy.name = client_level is unsupported"),
        (["method=fedavg_lora", "federation.client_ranks=[2,4]"], "can be averaged for equal ranks only"),
    ],
)
def test_client_declines_a_run_that_its_method_does_not_support(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    reason = decline_reason({"ledger": str(ledger)}, overrides)

    assert str(reason).startswith("ConfigError: ")
    assert message in str(reason)
    assert not ledger.exists()
    with pytest.raises(ConfigError, match=message):
        check_node("partition-id=0", compose(["experiment=smoke", *overrides]))


def test_batch_larger_than_the_data_uses_all_examples_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_once.cache_clear()
    config = compose(["experiment=smoke", "train.batch_size=1000"])
    with caplog.at_level(logging.WARNING):
        report, _ = train_messages.read_train_reply(run_first_round(config, tmp_path / "first"))
        run_first_round(config, tmp_path / "second")

    assert report.sample_rate == 1.0
    [warning] = [record.getMessage() for record in caplog.records if "batch_size = 1000" in record.getMessage()]
    assert f"more than its {report.num_examples} examples" in warning


def test_too_large_delta_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _warn_once.cache_clear()
    for delta, warns in ((1e-5, False), (0.02, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run_first_round(compose(["experiment=smoke", f"privacy.target_delta={delta}"]), tmp_path / str(delta))
        assert ("privacy.target_delta = 0.02 is at least 1/" in caplog.text) is warns


def test_diverging_local_training_raises(tmp_path: Path) -> None:
    config = compose(["experiment=smoke", "privacy=none", "train.learning_rate=1e30", "train.local_steps=20"])
    with pytest.raises(RunError, match=r"the loss of a batch is (nan|inf).*learning_rate"):
        run_first_round(config, tmp_path)


@pytest.mark.slow
def test_diverging_model_ends_the_run_before_it_spends_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["experiment=smoke", "train.learning_rate=1e38", "train.num_rounds=5", f"hydra.run.dir={tmp_path}"]
    status = main(["train", *overrides])

    output = capsys.readouterr().err
    assert status == 1
    assert "all 2 updates of round 1 are non-finite or too large for the settings" in output
    assert "train.learning_rate (1e+38)" in output
    with Ledger.open(
        tmp_path / "clients" / "0" / "ledger.sqlite", load_client_data(compose(overrides), 0).fingerprint
    ) as ledger:
        assert len(ledger.entries()) == 1

"""Data and settings at the edge: what a client does with them, and what it says."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

import client.local_round
from client.identity import ClientIdentity
from client.local_round import run_local_round
from client.setting_warnings import _warn_once
from fedsvd.cli import main
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import DataError, RunError
from fedsvd.lora.adapter import Part
from fedsvd.methods import build_method
from fedsvd.privacy.ledger import Ledger
from fedsvd.runtime.data import load_client_data
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages

B: frozenset[Part] = frozenset({"B"})
ALONE = ["federation.num_clients=1", "partition=iid", "partition.min_partition_size=1"]


def play(config: Config, folder: Path) -> RecordDict:
    start = initial_adapter(config, build_method(config.method))
    identity = ClientIdentity(0, 7, folder / "ledger.sqlite")
    task, factors = train_messages.TrainTask(1, B, B, account="a run"), payload.pack(start, B)
    return run_local_round(config, identity, task, factors, "message")


def sent_b(config: Config, content: RecordDict) -> torch.Tensor:
    start = initial_adapter(config, build_method(config.method))
    parts = payload.unpack(train_messages.read_train_reply(content)[1], B, start, torch.device("cpu"))
    return torch.cat([tensor.reshape(-1) for tensor in parts["B"].values()])


@pytest.mark.parametrize("privacy", ["dp_sgd", "client_level", "none"])
def test_a_client_with_one_example_takes_part(privacy: str, tmp_path: Path) -> None:
    config = compose(["experiment=smoke", f"privacy={privacy}", "data.max_train_examples=1", *ALONE])
    assert len(load_client_data(config, 0).examples) == 1

    content = play(config, tmp_path)

    assert torch.isfinite(sent_b(config, content)).all()
    assert train_messages.read_train_reply(content)[0].num_examples == 1


def test_a_client_without_examples_says_so_unpaid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["experiment=smoke"])
    silo = load_client_data(config, 0)
    monkeypatch.setattr(
        client.local_round, "load_client_data", lambda *_: replace(silo, examples=silo.examples.select([]))
    )

    with pytest.raises(DataError, match="client 0 holds no examples"):
        play(config, tmp_path)
    assert not (tmp_path / "ledger.sqlite").exists()


def test_a_batch_larger_than_the_data_takes_all_of_it_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_once.cache_clear()
    config = compose(["experiment=smoke", "train.batch_size=1000"])
    with caplog.at_level(logging.WARNING):
        report, _ = train_messages.read_train_reply(play(config, tmp_path / "first"))
        play(config, tmp_path / "second")

    assert report.sample_rate == 1.0
    [said] = [record.getMessage() for record in caplog.records if "batch_size = 1000" in record.getMessage()]
    assert f"more than its {report.num_examples} examples" in said


def test_a_delta_that_lets_whole_examples_through_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_once.cache_clear()
    for delta, warned in ((1e-5, False), (0.02, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            play(compose(["experiment=smoke", f"privacy.target_delta={delta}"]), tmp_path / str(delta))
        assert ("privacy.target_delta = 0.02 is at least 1/" in caplog.text) is warned


def test_training_that_diverges_is_named_and_sends_nothing(tmp_path: Path) -> None:
    config = compose(["experiment=smoke", "privacy=none", "train.learning_rate=1e30", "train.local_steps=20"])
    with pytest.raises(RunError, match=r"the loss of a batch is (nan|inf).*learning_rate"):
        play(config, tmp_path)


def test_a_model_that_diverges_ends_the_run_before_it_spends_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=smoke", "train.learning_rate=1e38", "train.num_rounds=5", f"hydra.run.dir={tmp_path}"]
    status = main(["train", *words])

    said = capsys.readouterr().err
    assert status == 1
    assert "all 2 updates of round 1 are not finite, or longer than the settings allow" in said
    assert "train.learning_rate (1e+38)" in said
    with Ledger.open(
        tmp_path / "clients" / "0" / "ledger.sqlite", load_client_data(compose(words), 0).fingerprint
    ) as ledger:
        assert len(ledger.entries()) == 1

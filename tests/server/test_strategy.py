"""Rounds of the real strategy on the in-process grid, with clients whose arrays are easy to compute by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from answering_app import Train, answering_app
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, RunError
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method
from fedsvd.wire import train_messages
from fedsvd.wire.train_messages import ClientReport
from server.polling_grid import PollingGrid
from server.strategy import FederatedLoRA


def make_adapter() -> Adapter:
    return Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(4, 2)}, head={}, scale={"s": 1.0})


def make_config(*overrides: str) -> Config:
    return compose(["experiment=smoke", "method=ffa_lora", "train.head=frozen", "privacy=none", *overrides])


def valid_reply(partition_id: int, task: train_messages.TrainTask, factors: ArrayRecord) -> RecordDict:
    """Return the reply of client k, which has k + 1 examples and sends B with all entries equal to k."""
    values = Array(np.full(8, partition_id, dtype=np.float32))
    report = ClientReport(partition_id, partition_id + 1, 0.1, server_round=task.server_round)
    return train_messages.train_reply(report, ArrayRecord({"B": values}))


def run_round(config: Config, train: Train, server_round: int = 1) -> FederatedLoRA:
    strategy = FederatedLoRA(build_method(config.method), config, make_adapter())
    grid = PollingGrid(InProcessGrid(answering_app(train), config.federation.num_clients, {}), lambda reply: None)
    messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
    strategy.aggregate_train(server_round, grid.send_and_receive(messages, timeout=5))
    return strategy


def test_round_averages_by_examples() -> None:
    strategy = run_round(make_config("federation.num_clients=3"), valid_reply)

    # (1·0 + 2·1 + 3·2) / 6
    torch.testing.assert_close(strategy.adapter.B["s"], torch.full((4, 2), 8 / 6))
    assert strategy.round.sampled == 3
    assert [report.partition_id for report in strategy.round.reports] == [0, 1, 2]
    assert strategy.round.bytes_up > 3 * 8 * 4
    # Every client draws the initial A and B from the seed.
    assert strategy.round.bytes_down == 0


def private_reply(
    partition_id: int, task: train_messages.TrainTask, factors: ArrayRecord, noise_multiplier: float | None = 2.0
) -> RecordDict:
    """Return `valid_reply` of a client that takes all of its examples in each step of DP-SGD."""
    report, sent = train_messages.read_train_reply(valid_reply(partition_id, task, factors))
    private = replace(report, loss=None, noise_multiplier=noise_multiplier, sample_rate=1.0, steps=2, epsilon=1.0)
    return train_messages.train_reply(private, sent)


INVERSE_VARIANCE = (
    "federation.weighting=inverse_variance", "federation.num_clients=3", "privacy=dp_sgd",
    "privacy.noise_multiplier=2", "train.sample_rate=1.0", "train.learning_rate=100",
)  # fmt: skip


def test_inverse_variance_weighs_by_the_noise() -> None:
    strategy = run_round(make_config(*INVERSE_VARIANCE), private_reply)

    # The noise in the mean of n examples has a standard deviation proportional to 1 / n: (1·0 + 4·1 + 9·2) / 14
    torch.testing.assert_close(strategy.adapter.B["s"], torch.full((4, 2), 22 / 14))
    assert not strategy.round.refused


def test_inverse_variance_needs_the_noise_of_each_client() -> None:
    def train(partition_id: int, task: train_messages.TrainTask, factors: ArrayRecord) -> RecordDict:
        return private_reply(partition_id, task, factors, None if partition_id == 2 else 2.0)

    strategy = run_round(make_config(*INVERSE_VARIANCE), train)

    torch.testing.assert_close(strategy.adapter.B["s"], torch.full((4, 2), 4 / 5))
    assert list(strategy.round.refused) == [2]
    assert "noise_multiplier or sample_rate is missing" in strategy.round.refused[2]


@pytest.mark.parametrize(
    "setting",
    ["privacy=none", "train=adamw", "train.momentum=0.5", "federation.secure_aggregation=true"],
)
def test_inverse_variance_needs_known_noise(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"federation\.weighting = inverse_variance is not possible with "):
        make_config(*INVERSE_VARIANCE, setting)


INVALID: dict[str, Callable[[], RecordDict]] = {
    "a part that was not requested": lambda: train_messages.train_reply(
        ClientReport(1, 5, 0.1, server_round=1), ArrayRecord({"A": Array(np.zeros(6, dtype=np.float32))})
    ),
    "nan": lambda: train_messages.train_reply(
        ClientReport(1, 5, 0.1, server_round=1), ArrayRecord({"B": Array(np.full(8, np.nan, dtype=np.float32))})
    ),
    "another shape": lambda: train_messages.train_reply(
        ClientReport(1, 5, 0.1, server_round=1), ArrayRecord({"B": Array(np.zeros(9, dtype=np.float32))})
    ),
    "another client's number": lambda: train_messages.train_reply(
        ClientReport(0, 5, 0.1, server_round=1), ArrayRecord({"B": Array(np.zeros(8, dtype=np.float32))})
    ),
    "no metrics": lambda: RecordDict({train_messages.FACTORS: ArrayRecord()}),
    "declined": lambda: train_messages.declined_reply("no budget left"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_reply_is_dropped_with_a_reason_and_the_round_continues(kind: str) -> None:
    def train(partition_id: int, task: train_messages.TrainTask, factors: ArrayRecord) -> RecordDict:
        return INVALID[kind]() if partition_id == 1 else valid_reply(partition_id, task, factors)

    strategy = run_round(make_config("federation.num_clients=3"), train)

    # (1·0 + 3·2) / 4
    torch.testing.assert_close(strategy.adapter.B["s"], torch.full((4, 2), 1.5))
    assert list(strategy.round.refused) == [1]
    assert strategy.round.refused[1]


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_client_without_a_count_is_used_only_with_uniform_weighting(weighting: str) -> None:
    def train(partition_id: int, task: train_messages.TrainTask, factors: ArrayRecord) -> RecordDict:
        reply = valid_reply(partition_id, task, factors)
        report, sent = train_messages.read_train_reply(reply)
        return train_messages.train_reply(train_messages.hide_counts(report), sent) if partition_id else reply

    strategy = run_round(make_config("federation.num_clients=3", f"federation.weighting={weighting}"), train)

    if weighting == "uniform":
        # (0 + 1 + 2) / 3
        torch.testing.assert_close(strategy.adapter.B["s"], torch.ones(4, 2))
        assert not strategy.round.refused
    else:
        assert torch.equal(strategy.adapter.B["s"], torch.zeros(4, 2))
        assert list(strategy.round.refused) == [1, 2]
        assert all("num_examples" in reason for reason in strategy.round.refused.values())


def test_client_that_raises_is_dropped() -> None:
    def train(partition_id: int, task: train_messages.TrainTask, factors: ArrayRecord) -> RecordDict:
        if partition_id == 0:
            raise ValueError("broken disk")
        return valid_reply(partition_id, task, factors)

    strategy = run_round(make_config("federation.num_clients=2"), train)

    assert "broken disk" in strategy.round.refused[0]
    assert torch.equal(strategy.adapter.B["s"], torch.ones(4, 2))


def test_too_few_valid_replies_leave_the_model_unchanged() -> None:
    def train(partition_id: int, task: train_messages.TrainTask, factors: ArrayRecord) -> RecordDict:
        return train_messages.declined_reply("no") if partition_id else valid_reply(partition_id, task, factors)

    strategy = run_round(make_config("federation.num_clients=3", "federation.min_replies=2"), train)

    assert strategy.round.skipped
    assert torch.equal(strategy.adapter.B["s"], torch.zeros(4, 2))


@pytest.mark.parametrize("missing", [1, 2])
def test_a_trimmed_mean_tolerates_as_many_malicious_clients_as_configured_or_takes_no_step(missing: int) -> None:
    def train(partition_id: int, task: train_messages.TrainTask, factors: ArrayRecord) -> RecordDict:
        if partition_id < missing:
            return train_messages.declined_reply("no")
        report, _ = train_messages.read_train_reply(valid_reply(partition_id, task, factors))
        value = 1e3 if partition_id == 3 else partition_id
        return train_messages.train_reply(report, ArrayRecord({"B": Array(np.full(8, value, dtype=np.float32))}))

    strategy = run_round(make_config("federation.num_clients=4", "aggregation=trimmed_mean"), train)

    # A quarter of 4 clients: of 1, 2 and 1000, one is dropped at each end. Of 2 and 1000, none would be left.
    assert strategy.round.skipped == (missing == 2)
    assert torch.equal(strategy.adapter.B["s"], torch.full((4, 2), 2.0 if missing == 1 else 0.0))


def test_sampling_is_seeded_by_round_and_covers_all_clients() -> None:
    config = make_config("federation.num_clients=5", "federation.clients_per_round=2")
    sampled: dict[int, list[int]] = {}
    for attempt in range(2):
        for server_round in range(1, 21):
            called: list[int] = []

            def train(
                partition_id: int, task: train_messages.TrainTask, factors: ArrayRecord, called: list[int] = called
            ) -> RecordDict:
                called.append(partition_id)
                return valid_reply(partition_id, task, factors)

            run_round(config, train, server_round)
            assert len(called) == 2
            assert attempt == 0 or sampled[server_round] == called
            sampled[server_round] = called
    assert {client for clients in sampled.values() for client in clients} == set(range(5))


@pytest.mark.parametrize("per_round", ["null", "1"])
def test_only_participants_are_asked_to_train(per_round: str) -> None:
    config = make_config(
        "federation.num_clients=4", "federation.participants=[1,3]", f"federation.clients_per_round={per_round}"
    )
    called: list[int] = []

    def train(partition_id: int, task: train_messages.TrainTask, factors: ArrayRecord) -> RecordDict:
        called.append(partition_id)
        return valid_reply(partition_id, task, factors)

    for server_round in range(1, 11):
        run_round(config, train, server_round)

    assert set(called) == {1, 3}
    assert len(called) == (20 if per_round == "null" else 10)


def test_surplus_nodes_are_ignored() -> None:
    config = make_config("federation.num_clients=2")
    strategy = FederatedLoRA(build_method(config.method), config, make_adapter())
    grid = InProcessGrid(answering_app(valid_reply), 4, {})

    messages = list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))

    assert len(messages) == 2


def test_no_clients_at_all_is_an_error_after_the_timeout() -> None:
    config = make_config()
    config = replace(config, federation=replace(config.federation, connect_timeout_s=0.3))
    strategy = FederatedLoRA(build_method(config.method), config, make_adapter())

    with pytest.raises(RunError, match="start the clients"):
        strategy.configure_train(1, ArrayRecord(), ConfigRecord(), InProcessGrid(answering_app(valid_reply), 0, {}))

"""Client-level privacy rounds of the real strategy on the in-process grid, with clients that send known arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from answering_app import answering_app
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method
from fedsvd.methods.aggregate import Reply
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.client_level import add_noise, run_spend
from fedsvd.privacy.noise_share import client_noise_multiplier
from fedsvd.privacy.randomness import TorchRandomness
from fedsvd.wire import train_messages
from fedsvd.wire.train_messages import ClientReport, TrainTask
from server.client_level import ClientLevelServer
from server.diagnostics import update_signal_to_noise
from server.strategy import FederatedLoRA

CLIENTS, ROWS = 4, 50


def make_config(*overrides: str) -> Config:
    base = ["experiment=smoke", "method=ffa_lora", "privacy=client_level", f"federation.num_clients={CLIENTS}"]
    return compose([*base, *overrides])


def constant_app(value: float) -> ClientApp:
    """Return an app whose clients send B with all entries equal to ``value``."""

    def train(partition_id: int, task: TrainTask, received: ArrayRecord) -> RecordDict:
        report = ClientReport(partition_id, 1000, 0.1, server_round=task.server_round)
        return train_messages.train_reply(report, ArrayRecord({"B": Array(np.full(2 * ROWS, value, dtype=np.float32))}))

    return answering_app(train)


def make_strategy(config: Config, folder: Path, seed: int | None = None) -> FederatedLoRA:
    adapter = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(ROWS, 2)}, head={}, scale={"s": 1.0})
    randomness = None if seed is None else TorchRandomness(seed)
    server = ClientLevelServer(config, folder / "ledger.sqlite", randomness)
    return FederatedLoRA(build_method(config.method), config, adapter, client_level=server)


def run_round(strategy: FederatedLoRA, server_round: int, value: float = 100.0) -> FederatedLoRA:
    grid = InProcessGrid(constant_app(value), CLIENTS, {})
    messages = list(strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid))
    strategy.aggregate_train(server_round, grid.send_and_receive(messages, timeout=5) if messages else [])
    return strategy


def test_server_clips_updates_and_ignores_example_counts(tmp_path: Path) -> None:
    # A budget so large that almost no noise is needed.
    config = make_config("privacy.target_epsilon=5000", "privacy.max_update_norm=2", "privacy.accountant=rdp")
    strategy = run_round(make_strategy(config, tmp_path, seed=0), 1)

    # Four updates of norm 2 each, averaged over four clients, with equal values in 100 entries.
    noise = 2 * run_spend(config.privacy, config.train, config.federation).noise_multiplier / CLIENTS
    assert strategy.adapter.B["s"].mean().item() == pytest.approx(0.2, abs=4 * noise / 10)
    assert strategy.round.sampled == CLIENTS


def test_each_round_is_charged_and_its_noise_matches_the_charge(tmp_path: Path) -> None:
    config = make_config("privacy.max_update_norm=1", "train.num_rounds=2")
    spend = run_spend(config.privacy, config.train, config.federation)
    strategy = run_round(make_strategy(config, tmp_path), 1, value=0.0)

    assert strategy.adapter.B["s"].std().item() == pytest.approx(spend.noise_multiplier / CLIENTS, rel=0.35)
    assert strategy.round.epsilon == epsilon([Spend(spend.noise_multiplier, 1.0, 1)], 1e-5)
    run_round(strategy, 2)
    assert strategy.round.epsilon == epsilon([spend], 1e-5)
    # A third round, e.g. repeated after a crash, would exceed the budget.
    before = strategy.adapter
    refused = run_round(make_strategy(config, tmp_path), 2).round
    assert refused.skipped
    # No client is asked, and what was spent is recorded.
    assert (refused.sampled, refused.bytes_down, refused.epsilon) == (0, 0, strategy.round.epsilon)
    assert "2 rounds were charged" in refused.refusal
    assert run_round(strategy, 2).adapter is before


@pytest.mark.slow
def test_round_without_sampled_clients_takes_a_noisy_step(tmp_path: Path) -> None:
    config = make_config("federation.clients_per_round=1", "train.num_rounds=60", "privacy.target_epsilon=50")
    strategy = make_strategy(config, tmp_path, seed=3)
    sampled = []
    for server_round in range(1, 41):
        before = strategy.adapter.B["s"].clone()
        run_round(strategy, server_round)
        sampled.append(strategy.round.sampled)
        assert not torch.equal(strategy.adapter.B["s"], before)
        assert not strategy.round.skipped

    assert 0 in sampled
    assert max(sampled) > 1
    # 40 rounds of 4 clients sampled with probability 1/4: 40 expected, with a standard deviation of 5.5.
    assert 40 - 22 < sum(sampled) < 40 + 22


def test_noise_of_the_mean_scales_with_the_clipping_norm_and_the_expected_number_of_clients(tmp_path: Path) -> None:
    sampled = ["federation.num_clients=8", "federation.clients_per_round=2"]
    config = make_config(*sampled, "privacy.max_update_norm=3", "privacy.noise_multiplier=2")
    adapter = Adapter(A={"s": torch.eye(4, 64)}, B={"s": torch.zeros(2000, 4)}, head={}, scale={"s": 1.0})
    total = [torch.full((2000, 4), 4.0, dtype=torch.float64)]

    level = ClientLevelServer(config, tmp_path / "ledger.sqlite", TorchRandomness(1))
    reply = level.aggregate(adapter, total, frozenset({"B"}))

    # The sum, and noise of standard deviation 2·3, divided by the two clients that are sampled on average.
    assert reply.parts["B"]["s"].mean().item() == pytest.approx(4 / 2, abs=0.2)
    assert reply.parts["B"]["s"].std().item() == pytest.approx(2 * 3 / 2, rel=0.05)
    assert reply.noise_std == 2 * 3 / 2


def test_client_sampling_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    config = make_config("federation.num_clients=64", "federation.clients_per_round=32", "data.max_train_examples=null")
    draws = [ClientLevelServer(config, tmp_path / "ledger").sample_clients() for _ in range(2)]
    assert draws[0] != draws[1]


@pytest.mark.parametrize("shared", ["false", "true"])
@pytest.mark.parametrize("survivors", [2, 4])
def test_noise_of_a_secure_mean_is_what_its_clients_or_the_server_added(
    shared: str, survivors: int, tmp_path: Path
) -> None:
    secure = [
        "federation.secure_aggregation=true",
        f"federation.min_survivors={survivors}",
        "privacy.noise_multiplier=2",
        "privacy.max_update_norm=3",
    ]
    config = make_config(*secure, f"privacy.noise_share={shared}", "federation.num_clients=8")
    adapter = Adapter(A={"s": torch.eye(4, 64)}, B={"s": torch.zeros(256, 4)}, head={}, scale={"s": 1.0})
    start, randomness = [torch.zeros(256, 4, dtype=torch.float64)], TorchRandomness(0)
    std = client_noise_multiplier(2.0, config) * config.privacy.max_update_norm if shared == "true" else 0.0
    # Seven of eight clients are in the sum; none has learned anything.
    sent = [add_noise(start, std, randomness)[0] if std else start[0] for _ in range(7)]
    mean = Reply(0, 7, {"B": {"s": torch.stack(sent).mean(0)}})

    level = ClientLevelServer(config, tmp_path / "ledger.sqlite", TorchRandomness(1))
    reply = level.aggregate_secure_mean(adapter, mean, 7, frozenset({"B"}))

    assert reply.noise_std == pytest.approx(reply.parts["B"]["s"].std().item(), rel=0.1)
    assert level.shared_noise_std(7) == pytest.approx(mean.parts["B"]["s"].std().item(), rel=0.1)
    assert update_signal_to_noise(adapter, [reply], config) == pytest.approx(0.0, abs=0.35)

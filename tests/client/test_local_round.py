"""Local rounds: what a client sends and charges, and that refusing a request spends nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from client.identity import ClientIdentity, client_identity
from client.local_round import _round_generator, run_local_round
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import BudgetExceededError, PayloadError, ReplayedMessageError
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods import build_method
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.ledger import Ledger
from fedsvd.runtime.data import load_client_data
from fedsvd.runtime.losses import clear_caches
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import ClientReport, TrainTask

B: frozenset[Part] = frozenset({"B"})


@pytest.fixture
def config() -> Config:
    return compose(["experiment=smoke", "method=fedsvd"])


@pytest.fixture
def adapter(config: Config) -> Adapter:
    return initial_adapter(config, build_method(config.method))


@pytest.fixture
def identity(tmp_path: Path) -> ClientIdentity:
    return ClientIdentity(0, 7, tmp_path / "ledger.sqlite")


def run_round(
    config: Config, identity: ClientIdentity, adapter: Adapter, server_round: int = 1, parts: frozenset[Part] = B
) -> RecordDict:
    task = TrainTask(server_round, parts, parts)
    return run_local_round(config, identity, task, payload.pack(adapter, B), f"message-{server_round}")


def context(**node_config: object) -> Context:
    return Context(run_id=7, node_id=1, node_config=node_config, state=RecordDict(), run_config={})


def test_only_b_is_sent_and_it_is_charged(config: Config, identity: ClientIdentity, adapter: Adapter) -> None:
    report, factors = train_messages.read_train_reply(run_round(config, identity, adapter))

    assert list(factors) == ["B"]
    assert report.num_examples == len(load_client_data(config, 0).examples)
    assert report.train_loss is None
    with Ledger.open(identity.ledger, load_client_data(config, 0).fingerprint) as ledger:
        [entry] = ledger.entries()
    assert entry.spend.steps == config.train.local_steps
    assert report.epsilon is not None
    assert 0 < report.epsilon <= config.privacy.target_epsilon


def test_untrained_part_is_refused_before_spending(config: Config, identity: ClientIdentity, adapter: Adapter) -> None:
    for parts in (frozenset({"A", "B"}), frozenset({"B", "head"})):
        with pytest.raises(PayloadError, match=r"method and train\.head allow"):
            run_round(config, identity, adapter, parts=parts)
    assert not identity.ledger.exists()


def test_parts_of_an_earlier_round_are_trained_after_skipped_rounds(identity: ClientIdentity) -> None:
    config = compose(["experiment=smoke", "method.pivot=BA"])
    start = initial_adapter(config, build_method(config.method))
    task = TrainTask(2, B, B)
    reply = run_local_round(config, identity, task, payload.pack(start, B), "message-2")

    assert list(train_messages.read_train_reply(reply)[1]) == ["B"]
    with pytest.raises(PayloadError, match=r"method and train\.head allow \['B'\]"):
        run_round(config, identity, start, 1, frozenset({"A"}))


def test_round_beyond_the_last_is_refused_before_spending(
    config: Config, identity: ClientIdentity, adapter: Adapter
) -> None:
    with pytest.raises(PayloadError, match="server_round = 3 is invalid: expected 1 to 2"):
        run_round(config, identity, adapter, server_round=3)
    assert not identity.ledger.exists()


def test_factors_of_another_rank_are_refused_before_spending(
    config: Config, identity: ClientIdentity, adapter: Adapter
) -> None:
    narrow = adapter.with_parts({"B": {name: b[:, :-1] for name, b in adapter.B.items()}})
    with pytest.raises(PayloadError, match="same model and rank"):
        run_round(config, identity, narrow)
    assert not identity.ledger.exists()


def test_repeated_requests_end_at_the_budget(config: Config, identity: ClientIdentity, adapter: Adapter) -> None:
    for server_round in (1, 2):
        run_round(config, identity, adapter, server_round)
    task = TrainTask(2, B, B)

    with pytest.raises(BudgetExceededError):
        run_local_round(config, identity, task, payload.pack(adapter, B), "another message for round 2")
    with Ledger.open(identity.ledger, load_client_data(config, 0).fingerprint) as ledger:
        assert len(ledger.entries()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("secure", ["true", "false"])
def test_seed_determines_initial_factors_and_example_order_but_not_noise(
    secure: str, identity: ClientIdentity, tmp_path: Path
) -> None:
    config = compose(["experiment=smoke", f"privacy.secure_random={secure}", "train.batch_size=2", "seed=3"])
    starts, orders, sent = [], [], []
    for number in range(2):
        # Start as a new process would.
        clear_caches()
        start = initial_adapter(config, build_method(config.method))
        reply = run_round(config, replace(identity, ledger=tmp_path / f"{number}.sqlite"), start)
        starts.append(start)
        orders.append(load_client_data(config, 0).examples["input_ids"][:])
        sent.append(payload.unpack(train_messages.read_train_reply(reply)[1], B, start, torch.device("cpu"))["B"])

    assert orders[0] == orders[1]
    for name in starts[0].A:
        assert torch.equal(starts[0].A[name], starts[1].A[name])
        # The noise is much larger than any gradient: the results differ everywhere, by as much as the noise.
        assert (sent[0][name] != sent[1][name]).all()
        difference = (sent[0][name] - sent[1][name]).std()
        assert difference > 0.5 * sent[0][name].std()


def test_each_client_and_round_has_a_random_stream_of_its_own() -> None:
    draws = {
        key: torch.rand(1, generator=_round_generator(*key)).item()
        for key in [(0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 1, 0)]
    }
    assert len(set(draws.values())) == len(draws)
    assert torch.rand(1, generator=_round_generator(0, 1, 0)).item() == draws[0, 1, 0]


def test_round_starts_from_the_received_factors(
    config: Config, identity: ClientIdentity, adapter: Adapter, tmp_path: Path
) -> None:
    open_config = compose(["experiment=smoke", "privacy=none"])
    moved = adapter.with_parts({"B": {name: torch.full_like(b, 0.25) for name, b in adapter.B.items()}})
    replies = [train_messages.read_train_reply(run_round(open_config, identity, a))[1] for a in (adapter, moved)]
    sent = [payload.unpack(r, B, a, torch.device("cpu"))["B"] for r, a in zip(replies, (adapter, moved), strict=True)]

    for name in adapter.B:
        assert (sent[0][name] - 0.25).abs().min() > 0.1
        assert (sent[1][name] - 0.25).abs().max() < 0.1
    assert not identity.ledger.exists()


def test_client_level_sends_a_clipped_update_and_charges_the_whole_run_once(
    identity: ClientIdentity, adapter: Adapter
) -> None:
    config = compose(["experiment=smoke", "privacy=client_level", "privacy.max_update_norm=1e-4", "train.num_rounds=3"])
    for server_round in (1, 3):
        task = TrainTask(server_round, B, B, account="one run, two processes")
        process = replace(identity, run_id=server_round)
        content = run_local_round(config, process, task, payload.pack(adapter, B), f"message-{server_round}")
        report, factors = train_messages.read_train_reply(content)
        sent = payload.unpack(factors, B, adapter, torch.device("cpu"))["B"]
        update = torch.cat([(sent[name] - b).reshape(-1) for name, b in adapter.B.items()])

        assert update.norm().item() == pytest.approx(1e-4, rel=1e-4)
        assert report.train_loss is None
        assert report.steps == 3
    with Ledger.open(identity.ledger, load_client_data(config, 0).fingerprint) as ledger:
        assert [spend.steps for spend in ledger.history()] == [3]
    with pytest.raises(PayloadError, match="has no account"):
        run_round(config, identity, adapter)
    another = TrainTask(1, B, B, account="another run")
    with pytest.raises(BudgetExceededError):
        run_local_round(config, identity, another, payload.pack(adapter, B), "message")


def test_shared_noise_charges_each_contribution_of_a_run(identity: ClientIdentity, adapter: Adapter) -> None:
    shared = ["privacy=client_level", "privacy.noise_share=true", "federation.secure_aggregation=true"]
    config = compose(["experiment=smoke", "train.num_rounds=3", *shared])

    def contribute(server_round: int, message: str, process: int) -> ClientReport:
        task = TrainTask(server_round, B, B, account="one run, two processes")
        own = replace(identity, run_id=process)
        content = run_local_round(config, own, task, payload.pack(adapter, B), message)
        return train_messages.read_train_reply(content)[0]

    # The server repeats round 2 in another process, after it has seen the sum.
    reports = [contribute(1, "m1", 1), contribute(2, "m2", 1), contribute(2, "m3", 2)]
    assert [report.steps for report in reports] == [1, 2, 3]
    sigma = reports[0].noise_multiplier
    assert sigma is not None
    assert [report.epsilon for report in reports] == [epsilon([Spend(sigma, 1.0, sums)], 1e-5) for sums in (1, 2, 3)]
    with pytest.raises(BudgetExceededError, match=r"1 more steps .* would raise the ε of this run"):
        contribute(3, "m4", 2)
    with pytest.raises(ReplayedMessageError):
        contribute(2, "m3", 2)
    with Ledger.open(identity.ledger, load_client_data(config, 0).fingerprint) as ledger:
        assert [(entry.spend.steps, bool(entry.released_at)) for entry in ledger.entries()] == [(1, True)] * 3


def test_ledger_of_the_node_configuration_overrides_the_default(config: Config, tmp_path: Path) -> None:
    own = client_identity(context(**{"partition-id": 3, "num-partitions": 4, "ledger": str(tmp_path / "mine")}), config)
    default = client_identity(context(**{"partition-id": 3, "num-partitions": 4}), config)

    assert (own.partition_id, own.run_id, own.ledger) == (3, 7, tmp_path / "mine")
    assert default.ledger != own.ledger
    assert default.ledger.parent.name == "3"

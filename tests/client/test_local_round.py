"""A client's own limits: what it refuses, whatever the server asks, and what refusing costs (nothing)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from client.identity import ClientIdentity, client_identity
from client.local_round import run_local_round
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import BudgetExceededError, PayloadError
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods import build_method
from fedsvd.privacy.ledger import Ledger
from fedsvd.runtime.data import load_client_data
from fedsvd.runtime.losses import clear_caches
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import TrainTask

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


def ask(
    config: Config, identity: ClientIdentity, adapter: Adapter, server_round: int = 1, parts: frozenset[Part] = B
) -> RecordDict:
    task = TrainTask(server_round, parts, parts)
    return run_local_round(config, identity, task, payload.pack(adapter, B), f"message-{server_round}")


def context(**node_config: object) -> Context:
    return Context(run_id=7, node_id=1, node_config=node_config, state=RecordDict(), run_config={})


def test_only_b_leaves_and_it_is_paid_for(config: Config, identity: ClientIdentity, adapter: Adapter) -> None:
    report, factors = train_messages.read_train_reply(ask(config, identity, adapter))

    assert list(factors) == ["B"]
    assert report.num_examples == len(load_client_data(config, 0).examples)
    assert report.train_loss is None
    with Ledger.open(identity.ledger, load_client_data(config, 0).fingerprint) as ledger:
        [entry] = ledger.entries()
    assert entry.spend.steps == config.train.local_steps
    assert report.epsilon is not None
    assert 0 < report.epsilon <= config.privacy.target_epsilon


def test_a_part_that_the_method_does_not_train_is_refused_unpaid(
    config: Config, identity: ClientIdentity, adapter: Adapter
) -> None:
    for parts in (frozenset({"A", "B"}), frozenset({"B", "head"})):
        with pytest.raises(PayloadError, match="allow"):
            ask(config, identity, adapter, parts=parts)
    assert not identity.ledger.exists()


def test_a_round_that_the_run_does_not_have_is_refused_unpaid(
    config: Config, identity: ClientIdentity, adapter: Adapter
) -> None:
    with pytest.raises(PayloadError, match="no round 3; this run has 2"):
        ask(config, identity, adapter, server_round=3)
    assert not identity.ledger.exists()


def test_factors_of_another_rank_are_refused_unpaid(config: Config, identity: ClientIdentity, adapter: Adapter) -> None:
    narrow = adapter.with_parts({"B": {name: b[:, :-1] for name, b in adapter.B.items()}})
    with pytest.raises(PayloadError, match="one rank"):
        ask(config, identity, narrow)
    assert not identity.ledger.exists()


def test_asking_again_and_again_ends_at_the_budget(config: Config, identity: ClientIdentity, adapter: Adapter) -> None:
    for server_round in (1, 2):
        ask(config, identity, adapter, server_round)
    task = TrainTask(2, B, B)

    with pytest.raises(BudgetExceededError):
        run_local_round(config, identity, task, payload.pack(adapter, B), "another message for round 2")
    with Ledger.open(identity.ledger, load_client_data(config, 0).fingerprint) as ledger:
        assert len(ledger.entries()) == 2


@pytest.mark.parametrize("secure", ["true", "false"])
def test_one_seed_gives_one_start_and_one_order_of_examples_but_never_the_same_noise(
    secure: str, identity: ClientIdentity, tmp_path: Path
) -> None:
    config = compose(["experiment=smoke", f"privacy.secure_random={secure}", "train.batch_size=2", "seed=3"])
    starts, orders, sent = [], [], []
    for number in range(2):
        # As a new process would find it.
        clear_caches()
        start = initial_adapter(config, build_method(config.method))
        reply = ask(config, replace(identity, ledger=tmp_path / f"{number}.sqlite"), start)
        starts.append(start)
        orders.append(load_client_data(config, 0).examples["input_ids"][:])
        sent.append(payload.unpack(train_messages.read_train_reply(reply)[1], B, start, torch.device("cpu"))["B"])

    assert orders[0] == orders[1]
    for name in starts[0].A:
        assert torch.equal(starts[0].A[name], starts[1].A[name])
        # Noise outweighs by far what a gradient could do: the two differ everywhere, and by as much as noise does.
        assert (sent[0][name] != sent[1][name]).all()
        difference = (sent[0][name] - sent[1][name]).std()
        assert difference > 0.5 * sent[0][name].std()


def test_a_round_starts_from_what_the_server_sent(
    config: Config, identity: ClientIdentity, adapter: Adapter, tmp_path: Path
) -> None:
    open_config = compose(["experiment=smoke", "privacy=none"])
    moved = adapter.with_parts({"B": {name: torch.full_like(b, 0.25) for name, b in adapter.B.items()}})
    replies = [train_messages.read_train_reply(ask(open_config, identity, a))[1] for a in (adapter, moved)]
    sent = [payload.unpack(r, B, a, torch.device("cpu"))["B"] for r, a in zip(replies, (adapter, moved), strict=True)]

    for name in adapter.B:
        assert (sent[0][name] - 0.25).abs().min() > 0.1
        assert (sent[1][name] - 0.25).abs().max() < 0.1
    assert not identity.ledger.exists()


def test_client_level_sends_a_clipped_update_and_pays_for_the_whole_run_once(
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
    with pytest.raises(PayloadError, match="names no account"):
        ask(config, identity, adapter)
    another = TrainTask(1, B, B, account="another run")
    with pytest.raises(BudgetExceededError):
        run_local_round(config, identity, another, payload.pack(adapter, B), "message")


def test_the_nodes_own_ledger_wins_over_the_run_folder(config: Config, tmp_path: Path) -> None:
    own = client_identity(context(**{"partition-id": 3, "num-partitions": 4, "ledger": str(tmp_path / "mine")}), config)
    default = client_identity(context(**{"partition-id": 3, "num-partitions": 4}), config)

    assert (own.partition_id, own.run_id, own.ledger) == (3, 7, tmp_path / "mine")
    assert default.ledger != own.ledger
    assert default.ledger.parent.name == "3"

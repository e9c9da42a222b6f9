"""What a client's own configuration forbids is refused with a reason, whatever the run's says, and costs nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.node_limits import NodeLimits, read_limits
from fedsvd.config.compose import compose
from fedsvd.errors import LimitError
from fedsvd.lora.adapter import Part
from fedsvd.methods import build_method
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget, Ledger
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import TrainTask

B: frozenset[Part] = frozenset({"B"})
SMOKE = ["experiment=smoke"]
OWN = {"max-epsilon": 6, "max-delta": 1e-5, "ledger": "ledger.sqlite"}


def declined(
    node_config: Mapping[str, Any],
    overrides: list[str],
    message_id: str = "message",
    server_round: int = 1,
    run_id: int = 7,
) -> str | None:
    """Ask the real ClientApp for one round; return why it declined, or None."""
    words = [*SMOKE, *overrides]
    config = compose(words)
    factors = payload.pack(initial_adapter(config, build_method(config.method)), B)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 2
    message = Message(train_messages.train_request(TrainTask(server_round, B, B), factors), 2, MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = message_id
    node = {"partition-id": 0, "num-partitions": 2, **node_config}
    context = Context(run_id, 2, node, RecordDict(), {"overrides": " ".join(words)})
    return train_messages.declined_reason(app(message, context).content)


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    return OWN | {"ledger": str(tmp_path / "private" / "ledger.sqlite")}


@pytest.mark.parametrize(
    ("limit", "overrides", "said"),
    [
        ({}, ["privacy.target_epsilon=6.5"], "privacy.target_epsilon = 6.5, but this client allows at most 6"),
        ({}, ["privacy.target_delta=1e-3"], "privacy.target_delta = 0.001, but this client allows at most 1e-05"),
        ({}, ["privacy=none"], "privacy = none, but this client trains with privacy = dp_sgd alone"),
        ({"max-grad-norm": 0.5}, [], "privacy.max_grad_norm = 1.0, but this client allows at most 0.5"),
        ({"max-steps": 1}, [], "train.local_steps = 2, but this client allows at most 1"),
        ({"min-noise-multiplier": 2}, [], "noise multiplier = 0.61"),
    ],
)
def test_a_run_that_asks_for_more_is_refused_unpaid(
    own: dict[str, Any], limit: dict[str, Any], overrides: list[str], said: str
) -> None:
    reason = declined(own | limit, overrides)

    assert reason is not None
    assert reason.startswith("LimitError: ")
    assert said in reason
    assert not Path(own["ledger"]).exists()


def test_a_run_within_the_limits_is_served(own: dict[str, Any]) -> None:
    generous = {"max-grad-norm": 1.0, "max-steps": 2, "min-noise-multiplier": 0.5, "require-privacy": True}

    assert declined(own | generous, []) is None


@pytest.mark.parametrize("limit", [{"require-privacy": True}, {"max-grad-norm": 1}, {"min-noise-multiplier": 0.1}])
def test_a_node_that_demands_privacy_gets_it(limit: dict[str, Any]) -> None:
    read_limits(limit).check(compose(SMOKE))
    with pytest.raises(LimitError, match="dp_sgd alone"):
        read_limits(limit).check(compose([*SMOKE, "privacy=none"]))


SECURE = ["federation.secure_aggregation=true"]
SHARED = [*SECURE, "privacy.noise_share=true", "privacy.noise_multiplier=3", "train.local_steps=1"]


@pytest.mark.parametrize(
    ("node", "overrides", "said"),
    [
        ({"min-survivors": 2}, [], "sends nothing but into secure sums"),
        ({"min-survivors": 3}, SECURE, "federation.min_survivors = 2, but this client allows at least 3"),
        ({"max-grad-norm": 4}, SHARED, "it adds all of its noise itself"),
        ({"min-survivors": 2}, SECURE, None),
        ({"min-survivors": 2, "max-grad-norm": 4}, SHARED, None),
        ({}, SHARED, None),
    ],
)
def test_a_node_hides_among_as_many_as_it_says(node: dict[str, Any], overrides: list[str], said: str | None) -> None:
    limits, config = read_limits(node), compose([*SMOKE, *overrides])
    if said is None:
        limits.check(config)
    else:
        with pytest.raises(LimitError, match=said):
            limits.check(config)


def test_a_node_that_hides_agrees_on_no_key_for_an_open_run() -> None:
    assert "sends nothing but into secure sums" in str(declined({"min-survivors": 2}, []))


@pytest.mark.parametrize("node", [{}, {"require-privacy": False}, {"max-steps": 2}])
def test_a_node_that_does_not_demand_it_trains_without(node: dict[str, Any]) -> None:
    read_limits(node).check(compose([*SMOKE, "privacy=none"]))


def test_many_runs_on_one_node_never_pass_its_own_budget(own: dict[str, Any]) -> None:
    reasons = []
    for run in range(8):
        # Each run names a place of its own for ledgers, and an ε in all that the node never granted.
        overrides = ["privacy.target_epsilon=4", "privacy.max_epsilon=1000", f"privacy.ledger_dir=/nowhere/{run}"]
        reasons += [declined(own, overrides, f"{run}/{n}", n, run_id=run) for n in (1, 2)]

    assert reasons[:2] == [None, None]
    assert "this client allows 6" in str(reasons[-1])
    with Ledger.read(Path(own["ledger"])) as ledger:
        assert len(ledger.entries()) == reasons.count(None) < 16
        assert {entry.budget.max_epsilon for entry in ledger.entries()} == {6.0}


def test_a_replayed_message_is_declined(own: dict[str, Any]) -> None:
    assert declined(own, []) is None
    assert "ReplayedMessageError: message message was charged" in str(declined(own, []))


def test_other_data_under_one_ledger_are_refused(own: dict[str, Any]) -> None:
    assert declined(own, []) is None
    assert "other data" in str(declined(own, ["seed=1"], "another message"))


def test_a_damaged_ledger_stops_the_client_with_a_reason(own: dict[str, Any]) -> None:
    Path(own["ledger"]).parent.mkdir()
    Path(own["ledger"]).write_bytes(b"")

    assert "LedgerError" in str(declined(own, []))


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"max-epsilon": 6, "ledger": "x"}, "max-epsilon and max-delta together"),
        ({"max-delta": 1e-5, "ledger": "x"}, "max-epsilon and max-delta together"),
        ({"max-epsilon": 6, "max-delta": 1e-5}, "no ledger"),
        (OWN | {"max-epsilon": "6"}, "max-epsilon = '6'"),
        (OWN | {"max-epsilon": 0}, "number above 0"),
        (OWN | {"max-epsilon": float("inf")}, "number above 0"),
        (OWN | {"max-epsilon": float("nan")}, "number above 0"),
        (OWN | {"max-delta": 1.0}, "between 0 and 1"),
        ({"max-steps": 1.5}, "whole number above 0"),
        ({"max-steps": True}, "whole number above 0"),
        ({"require-privacy": 1}, "true or false"),
        ({"max-epsilo": 6}, "no limit; there are: max-epsilon"),
        ({"max_epsilon": 6}, "no limit"),
        ({"noise-multiplier": 1}, "no limit"),
        ({"legder": "x"}, "no limit"),
    ],
)
def test_limits_that_would_not_hold_stop_the_client(node: dict[str, Any], said: str) -> None:
    with pytest.raises(LimitError, match=said):
        read_limits(node)
    assert said in str(declined(node, []))


def test_other_keys_of_a_node_are_none_of_our_business() -> None:
    assert read_limits({"partition-id": 1, "num-partitions": 2, "ledger": "x", "site": "north"}) == NodeLimits()


def test_the_nodes_delta_is_what_its_epsilon_is_held_to() -> None:
    limits = read_limits(OWN | {"max-delta": 1e-4})
    privacy = compose([*SMOKE, "privacy.target_epsilon=2"]).privacy

    assert limits.budget(privacy) == Budget(2.0, 1e-5, 6.0, 1e-4, "prv")
    assert NodeLimits().budget(privacy) == Budget(2.0, 1e-5, 2.0, 1e-5, "prv")
    limits.check_noise(Spend(0.1, 0.1, 1))

"""Limits of the node configuration: a run that exceeds them is refused with a reason, and nothing is spent."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from node_messages import SMOKE, decline_reason

from client.app import app
from client.node_limits import NodeLimits, has_strict_ledger, read_limits
from fedsvd.cli import main
from fedsvd.compat.flower import set_task_identity
from fedsvd.config.compose import compose
from fedsvd.errors import LimitError
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget, Ledger
from fedsvd.wire import train_messages

LIMITS = {"max-epsilon": 6, "max-delta": 1e-5, "ledger": "ledger.sqlite"}


@pytest.fixture
def node_config(tmp_path: Path) -> dict[str, Any]:
    return LIMITS | {"ledger": str(tmp_path / "private" / "ledger.sqlite")}


@pytest.mark.parametrize(
    ("limit", "overrides", "message"),
    [
        ({}, ["privacy.target_epsilon=6.5"], "privacy.target_epsilon = 6.5, but this client allows at most 6"),
        ({}, ["privacy.target_delta=1e-3"], "privacy.target_delta = 0.001, but this client allows at most 1e-05"),
        ({}, ["privacy=none"], "privacy = none, but this client allows only dp_sgd"),
        ({"max-grad-norm": 0.5}, [], "privacy.max_grad_norm = 1.0, but this client allows at most 0.5"),
        ({"max-steps": 1}, [], "train.local_steps = 2, but this client allows at most 1"),
        ({"min-noise-multiplier": 2}, [], "noise multiplier = 0.61"),
    ],
)
def test_run_beyond_the_limits_is_refused_before_spending(
    node_config: dict[str, Any], limit: dict[str, Any], overrides: list[str], message: str
) -> None:
    reason = decline_reason(node_config | limit, overrides)

    assert reason is not None
    assert reason.startswith("LimitError: ")
    assert message in reason
    assert not Path(node_config["ledger"]).exists()


def test_run_within_the_limits_is_accepted(node_config: dict[str, Any]) -> None:
    generous = {"max-grad-norm": 1.0, "max-steps": 2, "min-noise-multiplier": 0.5, "require-privacy": True}

    assert decline_reason(node_config | generous, []) is None


@pytest.mark.parametrize("limit", [{"require-privacy": True}, {"max-grad-norm": 1}, {"min-noise-multiplier": 0.1}])
def test_privacy_limits_require_dp_sgd(limit: dict[str, Any]) -> None:
    read_limits(limit).check(compose(SMOKE))
    with pytest.raises(LimitError, match="allows only dp_sgd"):
        read_limits(limit).check(compose([*SMOKE, "privacy=none"]))


SECURE = ["federation.secure_aggregation=true"]
SHARED = [*SECURE, "privacy.noise_share=true", "privacy.noise_multiplier=3", "train.local_steps=1"]


@pytest.mark.parametrize(
    ("limit", "overrides", "message"),
    [
        ({"min-survivors": 2}, [], "this client requires secure aggregation"),
        ({"min-survivors": 3}, SECURE, "federation.min_survivors = 2, but this client allows at least 3"),
        ({"max-grad-norm": 4}, SHARED, "it must add all of its noise itself"),
        ({"min-survivors": 2}, SECURE, None),
        ({"min-survivors": 2, "max-grad-norm": 4}, SHARED, None),
        ({}, SHARED, None),
        # The sum of the counts is visible, and the clients of two sums differ.
        ({"share-counts": False}, SECURE, r"federation.weighting=uniform\. A secure sum has the total of these counts"),
        ({"share-counts": False}, [*SECURE, "federation.weighting=uniform"], None),
        ({"share-counts": False}, SHARED, None),
        ({"share-counts": True}, SECURE, None),
    ],
)
def test_limits_on_secure_sums_of_a_node(limit: dict[str, Any], overrides: list[str], message: str | None) -> None:
    limits, config = read_limits(limit), compose([*SMOKE, *overrides])
    if message is None:
        limits.check(config)
    else:
        with pytest.raises(LimitError, match=message):
            limits.check(config)


def test_node_with_min_survivors_declines_a_run_without_secure_aggregation() -> None:
    assert "this client requires secure aggregation" in str(decline_reason({"min-survivors": 2}, []))


@pytest.mark.parametrize("limit", [{}, {"require-privacy": False}, {"max-steps": 2}])
def test_node_without_privacy_limits_accepts_runs_without_privacy(limit: dict[str, Any]) -> None:
    read_limits(limit).check(compose([*SMOKE, "privacy=none"]))


@pytest.mark.slow
def test_many_runs_on_one_node_never_exceed_its_budget(node_config: dict[str, Any]) -> None:
    reasons = []
    for run in range(8):
        # Each run sets its own ledger directory, and a total ε that the node does not allow.
        overrides = ["privacy.target_epsilon=4", "privacy.max_epsilon=1000", f"privacy.ledger_dir=/nowhere/{run}"]
        reasons += [decline_reason(node_config, overrides, f"{run}/{n}", n, run_id=run) for n in (1, 2)]

    assert reasons[:2] == [None, None]
    assert "this client allows 6" in str(reasons[-1])
    with Ledger.read(Path(node_config["ledger"])) as ledger:
        assert len(ledger.entries()) == reasons.count(None) < 16
        assert {entry.budget.max_epsilon for entry in ledger.entries()} == {6.0}


def test_replayed_message_is_declined(node_config: dict[str, Any]) -> None:
    assert decline_reason(node_config, []) is None
    assert "ReplayedMessageError: message message was charged" in str(decline_reason(node_config, []))


@pytest.mark.slow
def test_data_that_change_are_charged_to_the_same_ledger(
    node_config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ["privacy.target_epsilon=2"]
    assert decline_reason(node_config, overrides) is None
    assert decline_reason(node_config, [*overrides, "seed=1"], "another message") is None
    assert "1 charges on earlier data count against the present data, too" in caplog.text
    with Ledger.read(Path(node_config["ledger"])) as ledger:
        [event] = ledger.state().events
        first, second = ledger.entries()
        assert len(ledger.history()) == 2
    assert (event.old_fingerprint, event.new_fingerprint) == (first.fingerprint, second.fingerprint)


def test_strict_ledger_declines_data_that_change(node_config: dict[str, Any]) -> None:
    node_config |= {"ledger-policy": "strict"}
    assert decline_reason(node_config, []) is None
    assert "other data" in str(decline_reason(node_config, ["seed=1"], "another message"))
    with Ledger.read(Path(node_config["ledger"])) as ledger:
        assert len(ledger.entries()) == 1
        assert ledger.state().events == ()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["continue", "strict"])
def test_new_account_lets_a_node_go_from_public_data_to_its_own(
    node_config: dict[str, Any], policy: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.csv"
    file.write_text("text,label\n" + "".join(f"a finding {n},{('ill', 'well')[n % 2]}\n" for n in range(40)))
    node_config |= {"ledger-policy": policy}
    own = node_config | {"data-path": str(file)}
    overrides = ["data=node", "data.labels=[ill,well]", "federation.weighting=uniform", "train.head=frozen"]
    # The trial on public data spends most of the budget.
    assert [decline_reason(node_config, [], f"public {n}", n) for n in (1, 2)] == [None, None]
    assert decline_reason(own, overrides, "own 1", 1, run_id=8) is not None

    assert main(["privacy", "ledger", node_config["ledger"], "--new-account", "public data so far"]) == 0

    assert [decline_reason(own, overrides, f"own {n}", n, run_id=8) for n in (1, 2)] == [None, None]
    with Ledger.read(Path(node_config["ledger"])) as ledger:
        assert [entry.account for entry in ledger.entries()] == [1, 1, 2, 2]
    assert "in an earlier account" in str(decline_reason(node_config, [], "public again"))


def test_damaged_ledger_is_refused_with_a_reason(node_config: dict[str, Any]) -> None:
    Path(node_config["ledger"]).parent.mkdir()
    Path(node_config["ledger"]).write_bytes(b"")

    assert "LedgerError" in str(decline_reason(node_config, []))


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max-epsilon": 6, "ledger": "x"}, "set both or neither"),
        ({"max-delta": 1e-5, "ledger": "x"}, "set both or neither"),
        ({"max-epsilon": 6, "max-delta": 1e-5}, "no effect without a ledger"),
        (LIMITS | {"max-epsilon": "6"}, "max-epsilon = '6'"),
        (LIMITS | {"max-epsilon": 0}, "expected a number > 0"),
        (LIMITS | {"max-epsilon": float("inf")}, "expected a number > 0"),
        (LIMITS | {"max-epsilon": float("nan")}, "expected a number > 0"),
        (LIMITS | {"max-delta": 1.0}, "expected a number between 0 and 1"),
        ({"max-steps": 1.5}, "expected an integer > 0"),
        ({"max-steps": True}, "expected an integer > 0"),
        ({"require-privacy": 1}, "expected true or false"),
        ({"ledger": ""}, "ledger = '' is invalid: expected the path of a file"),
        ({"ledger": 5}, "ledger = 5 is invalid"),
    ],
)
def test_limits_without_effect_are_errors(limit: dict[str, Any], message: str) -> None:
    with pytest.raises(LimitError, match=message):
        read_limits(limit)
    assert message in str(decline_reason(limit, []))


@pytest.mark.parametrize(
    ("node_config", "message"),
    [
        ({"ledger": "x", "ledger-policy": "lenient"}, "ledger-policy = 'lenient' is invalid: expected one of continue"),
        ({"ledger": "x", "ledger-policy": True}, "ledger-policy = True is invalid"),
        ({"ledger-policy": "strict"}, "no effect without a ledger"),
    ],
)
def test_invalid_ledger_policy_is_an_error(node_config: dict[str, Any], message: str) -> None:
    def read(values: dict[str, Any]) -> bool:
        read_limits(values)
        return has_strict_ledger(values)

    with pytest.raises(LimitError, match=message):
        read(node_config)
    assert message in str(decline_reason(node_config, []))
    assert read({"ledger": "x"}) is read({"ledger": "x", "ledger-policy": "continue"}) is False
    assert read({"ledger": "x", "ledger-policy": "strict"}) is True


def test_a_node_configuration_needs_no_limits() -> None:
    assert read_limits({"partition-id": 1, "num-partitions": 2, "ledger": "x"}) == NodeLimits()


def test_max_epsilon_applies_at_the_nodes_max_delta() -> None:
    limits = read_limits(LIMITS | {"max-delta": 1e-4})
    privacy = compose([*SMOKE, "privacy.target_epsilon=2"]).privacy

    assert limits.budget(privacy) == Budget(2.0, 1e-5, 6.0, 1e-4, "prv")
    assert NodeLimits().budget(privacy) == Budget(2.0, 1e-5, 2.0, 1e-5, "prv")
    limits.check_noise(Spend(0.1, 0.1, 1))


@pytest.mark.parametrize("node_config", [{}, {"partition-id": "x"}, {"partition-id": 0.7}, {"partition-id": -1}])
def test_node_without_a_valid_partition_says_so(node_config: dict[str, Any]) -> None:
    set_task_identity(1, 7, 2)
    context = Context(7, 2, node_config, RecordDict(), {"overrides": " ".join(SMOKE)})
    for kind in (train_messages.PARTITION_QUERY, MessageType.TRAIN):
        content = app(Message(RecordDict(), 2, kind), context).content
        reason = str(train_messages.declined_reason(content))
        assert reason.startswith("LimitError: node configuration has ")
        assert "expected an integer from 0 to the number of clients minus 1" in reason
        assert not content.metric_records

"""Attempts that a client may have been charged for, and that failed before the client declined another one."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import pytest
from flwr.app import Error, Message, RecordDict

from fedsvd.compat.flower import ErrorCode, set_task_identity
from fedsvd.config.compose import as_dict, compose
from fedsvd.config.flat import flatten
from fedsvd.launch.forwarding_grid import ForwardingGrid
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.claim import weakest_claim
from fedsvd.privacy.recorded_charges import Row
from fedsvd.wire import train_messages
from fedsvd.wire.train_messages import ClientReport
from server.app import _retrying
from server.clients import Clients
from server.replies import RoundRecord, valid_replies
from server.round_privacy import round_privacy

CONFIG = compose(["experiment=smoke", "train.sample_rate=1.0", "privacy.accountant=rdp", "federation.retries=2",
                  "federation.retry_after_s=0"])  # fmt: skip
STEPS, SIGMA = CONFIG.train.local_steps, 3.0
LOST, EXHAUSTED = Error(ErrorCode.CLIENT_APP_CRASHED, "killed"), "BudgetExceededError: it would exceed the budget"


class Script(ForwardingGrid):
    """Grid of one node, 2, which answers with the given contents, one after another."""

    def __init__(self, answers: list[Error | RecordDict]) -> None:
        self.answers = answers

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            yield Message(self.answers.pop(0), reply_to=message)  # type: ignore[arg-type]


def request(_: object = None) -> Message:
    return Message(RecordDict(), 2, "train", group_id="2")


def epsilon_of(rounds: int) -> float:
    return epsilon([Spend(SIGMA, 1.0, STEPS * rounds)], 1e-5, "rdp")


def row(record: RoundRecord, earlier: list[Row]) -> Row:
    return {
        "server_round": record.server_round,
        "epsilon": epsilon_of(1),
        "client_epsilons": {str(report.partition_id): report.epsilon for report in record.reports},
        "privacy": round_privacy(CONFIG, record, earlier, 0, 0),
    }


@pytest.mark.parametrize(
    ("answers", "presumed"),
    [
        ([train_messages.declined_reply(EXHAUSTED)], 0),
        ([LOST, train_messages.declined_reply(EXHAUSTED)], 1),
        ([LOST, train_messages.resend_reply(), LOST, train_messages.declined_reply(EXHAUSTED)], 2),
        ([LOST, train_messages.declined_reply("ReplayedMessageError: it was charged before")], 2),
        ([train_messages.declined_reply("LimitError: ReplayedMessageError")], 0),
        ([LOST, LOST, LOST], 3),
    ],
)
def test_claim_includes_the_attempts_before_a_client_declines(answers: list[Error | RecordDict], presumed: int) -> None:
    set_task_identity(1, 7, 1)
    first = RoundRecord(1, 1, reports=[ClientReport(0, 50, 1.0, epsilon_of(1), SIGMA, 1.0, STEPS)])
    first.sampled_clients = (0,)
    record, clients = RoundRecord(2, 1, sampled_clients=(0,)), Clients(CONFIG.federation)
    clients.partitions = {2: 0}
    strategy = SimpleNamespace(round=record, full_request=request)
    grid = _retrying(Script(answers), strategy, CONFIG)  # type: ignore[arg-type]

    assert not list(valid_replies(grid.send_and_receive([request()]), record, clients, pytest.fail))  # type: ignore[arg-type]

    rows = [row(first, [])]
    rows.append(row(record, rows))
    assert rows[1]["privacy"]["presumed"] == ({"0": STEPS * presumed} if presumed else {})
    # The ledger may have been charged for the first round and for these attempts.
    assert weakest_claim(rows, flatten(as_dict(CONFIG))).client_epsilons["0"] == epsilon_of(1 + presumed)


@pytest.mark.parametrize(("overrides", "attempts"), [([], 3), (["federation.secure_aggregation=true"], 1)], ids=str)
def test_silent_client_of_a_secure_round_was_asked_once(overrides: list[str], attempts: int) -> None:
    config = compose(["experiment=smoke", "federation.retries=2", *overrides])
    silent = RoundRecord(1, 1, refused={0: "error 5: no reply within 3240 s"}, sampled_clients=(0,))
    assert round_privacy(config, silent, [], 0, 0)["presumed"] == {"0": config.train.local_steps * attempts}
    assert round_privacy(config, silent, [], 1, 1)["presumed"] == {"0": config.train.local_steps * attempts * 2}

    trained = RoundRecord(1, 1, reports=[ClientReport(0, 50, 1.0, epsilon_of(1), SIGMA, 1.0, STEPS)])
    claim = weakest_claim([row(trained, [])], flatten(as_dict(config)), interrupted=1)
    assert claim.client_epsilons["0"] == epsilon_of(1 + attempts)

"""Secure rounds of the real strategy and client code, with clients that drop out before any stage."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.secure_aggregation import answer_stage
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import FedSVDError, PayloadError, describe
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method
from fedsvd.secagg import messages
from fedsvd.wire import train_messages
from fedsvd.wire.train_messages import ClientReport
from server.client_level import ClientLevelServer
from server.secure_grid import SecureGrid
from server.strategy import FederatedLoRA

ROWS = 4


def make_config(*overrides: str) -> Config:
    base = ["experiment=smoke", "method=ffa_lora", "privacy=none", "federation.secure_aggregation=true"]
    return compose([*base, "federation.num_clients=5", *overrides])


def value_of(partition_id: int) -> float:
    return 0.1 * (partition_id + 1) * (-1) ** partition_id


class Clients:
    """Clients of which client k has k + 1 examples and sends B with all entries equal to `value_of(k)`.

    ``dropouts`` maps a client to the stage before which it drops out.
    """

    def __init__(self, config: Config, dropouts: dict[int, str]) -> None:
        self.config, self.dropouts = config, dropouts
        self.trained: list[int] = []
        self.answered: list[tuple[int, Message, RecordDict]] = []
        self.app = ClientApp()
        self.app.query("partition")(self.partition)
        self.app.train()(self.train)

    def partition(self, message: Message, context: Context) -> Message:
        return Message(train_messages.partition_reply(int(context.node_config["partition-id"])), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if message.content.config_records[messages.RECORD]["stage"] == self.dropouts.get(number):
            raise RuntimeError("the power is gone")

        def local_round() -> RecordDict:
            self.trained.append(number)
            values = Array(np.full(2 * ROWS, value_of(number), dtype=np.float32))
            server_round = train_messages.read_train_request(message.content)[0].server_round
            report = ClientReport(number, number + 1, 0.1, 1.5, 1.25, 0.5, 2, server_round=server_round)
            return train_messages.train_reply(report, ArrayRecord({"B": values}))

        try:
            content = answer_stage(message.content, context.state, context.node_id, self.config, local_round)
        except FedSVDError as error:
            content = train_messages.declined_reply(describe(error))
        self.answered.append((number, message, content))
        return Message(content, reply_to=message)


def connect(
    clients: Clients, client_level: ClientLevelServer | None = None, min_survivors: int | None = None
) -> tuple[FederatedLoRA, SecureGrid, InProcessGrid]:
    """Return a server of these clients, and its grid with and without secure sums."""
    config = clients.config
    adapter = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(ROWS, 2)}, head={}, scale={"s": 1.0})
    inner = InProcessGrid(clients.app, config.federation.num_clients, {})
    grid = SecureGrid(inner, min_survivors or config.federation.min_survivors)
    return FederatedLoRA(build_method(config.method), config, adapter, 0, client_level, grid), grid, inner


def requests(strategy: FederatedLoRA, grid: SecureGrid, server_round: int = 1) -> list[Message]:
    return list(strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid))


def run_round(
    clients: Clients, client_level: ClientLevelServer | None = None, between: Callable[[], None] | None = None
) -> tuple[FederatedLoRA, SecureGrid]:
    strategy, grid, _ = connect(clients, client_level)
    strategy.aggregate_train(1, grid.send_and_receive(requests(strategy, grid), timeout=30))
    return strategy, grid


def weighted_mean(numbers: list[int]) -> float:
    return sum((k + 1) * value_of(k) for k in numbers) / sum(k + 1 for k in numbers)


@pytest.mark.parametrize("stage", ["none", "setup", "share", "collect", "unmask"])
@pytest.mark.parametrize("dropouts", [[1], [0, 4]])
def test_mean_is_over_the_clients_that_sent_a_masked_vector(stage: str, dropouts: list[int]) -> None:
    clients = Clients(make_config(), dict.fromkeys(dropouts, stage))
    strategy, grid = run_round(clients)

    # A client that drops out before unmasking has sent its masked vector, so it contributes.
    contributors = [k for k in range(5) if k not in dropouts or stage in ("none", "unmask")]
    assert grid.outcome is not None, grid.reason
    assert grid.outcome.contributors == len(contributors)
    assert strategy.adapter.B["s"].numpy() == pytest.approx(weighted_mean(contributors), abs=1e-6)
    assert sorted(clients.trained) == contributors


@pytest.mark.parametrize("stage", ["setup", "share", "collect", "unmask"])
def test_with_too_few_survivors_the_round_is_skipped(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config("federation.min_survivors=3")
    strategy, grid = run_round(Clients(config, dict.fromkeys([0, 2, 4], stage)))

    assert grid.outcome is None
    assert strategy.round.skipped
    assert torch.equal(strategy.adapter.B["s"], torch.zeros(ROWS, 2))
    assert "2 of 5 clients" in caplog.text
    assert "a secure sum needs at least 3" in caplog.text


def test_server_sees_neither_values_nor_counts() -> None:
    clients = Clients(make_config(), {})
    run_round(clients)
    replies = [content for _, message, content in clients.answered
               if message.content.config_records[messages.RECORD]["stage"] == "collect"]  # fmt: skip

    assert len(replies) == 5
    for number, content in enumerate(replies):
        report, factors = train_messages.read_train_reply(content)
        assert (report.num_examples, report.noise_multiplier, report.sample_rate) == (None, None, None)
        assert (report.partition_id, report.epsilon, report.steps) == (number, 1.5, 2)
        assert not factors
        vector = messages.masked_vector(content, 2 * ROWS + 1).astype(np.float64) / 2.0**64
        assert len(set(vector)) == len(vector)
        assert 0.02 < vector.std() < 0.5


def test_each_stage_is_answered_once_and_in_order() -> None:
    clients = Clients(make_config(), {})
    run_round(clients)
    first = {m.content.config_records[messages.RECORD]["stage"]: m for number, m, _ in clients.answered if number == 0}
    grid = InProcessGrid(clients.app, 5, {})
    node = next(iter(first.values())).metadata.dst_node_id

    def send(content: RecordDict) -> str | None:
        [reply] = grid.send_and_receive([Message(content, node, "train")])
        return train_messages.declined_reason(reply.content)

    def send_stage(stage: str) -> str | None:
        return send(first[stage].content)

    # A new client without a session, then one of another session.
    assert "out of order" in str(send_stage("collect"))
    assert send(messages.request("setup", "another")) is None
    assert "out of order" in str(send_stage("share"))
    assert send_stage("setup") is None
    for stage in ("collect", "unmask"):
        assert "out of order" in str(send_stage(stage))
    # The keys are of an earlier session, not this client's own.
    assert "does not contain this client's own" in str(send_stage("share"))
    assert "out of order" in str(send_stage("share"))


def test_replays_after_a_round_reveal_nothing() -> None:
    clients = Clients(make_config(), {})
    strategy, grid, inner = connect(clients)
    list(grid.send_and_receive(requests(strategy, grid), timeout=30))
    trained = list(clients.trained)

    for _, message, _ in list(clients.answered):
        if message.content.config_records[messages.RECORD]["stage"] != "setup":
            replay = Message(message.content, message.metadata.dst_node_id, "train")
            [reply] = inner.send_and_receive([replay])
            assert "out of order" in str(train_messages.declined_reason(reply.content))
    assert clients.trained == trained


def test_second_sum_of_the_same_round_is_refused() -> None:
    clients = Clients(make_config(), {})
    strategy, grid, _ = connect(clients)
    # A sum of all five clients, then of four: the difference would be the fifth client's update.
    list(grid.send_and_receive(requests(strategy, grid), timeout=30))
    assert grid.outcome is not None
    sent = requests(strategy, grid)[:4]
    replies = list(grid.send_and_receive(sent, timeout=30))

    assert grid.outcome is None
    assert all(
        "a masked vector was already sent for round 1" in str(train_messages.declined_reason(reply.content))
        for reply in replies
    )
    assert len(clients.trained) == 5
    list(grid.send_and_receive(requests(strategy, grid, 2), timeout=30))
    assert grid.outcome is not None


@pytest.mark.parametrize(
    ("alive", "dead", "message"),
    [
        ([0, 1], [2, 3, 4], "2 of 5 clients are listed as alive: expected at least 3"),
        ([0, 1, 2, 3, 4], [4], "listed as either alive or dead"),
        ([0, 1, 2, 3], [], "listed as either alive or dead"),
        ([1, 2, 3, 4], [0], "listed as either alive or dead"),
    ],
)
def test_client_sends_no_shares_for_inconsistent_lists(alive: list[int], dead: list[int], message: str) -> None:
    clients = Clients(make_config(), dict.fromkeys(range(5), "unmask"))
    strategy, grid, inner = connect(clients)
    list(grid.send_and_receive(requests(strategy, grid), timeout=30))
    clients.dropouts = {}
    nodes = sorted(inner.get_node_ids())
    session = clients.answered[0][1].content.config_records[messages.RECORD]["session"]
    content = messages.request("unmask", str(session), alive=[nodes[k] for k in alive], dead=[nodes[k] for k in dead])

    [reply] = inner.send_and_receive([Message(content, nodes[0], "train")])

    assert message in str(train_messages.declined_reason(reply.content))


def test_client_enforces_min_survivors() -> None:
    clients = Clients(make_config("federation.min_survivors=4"), {})
    # The server requires only two survivors, and sends the keys of three clients.
    strategy, grid, _ = connect(clients, min_survivors=2)
    sent = requests(strategy, grid)[:3]
    replies = list(grid.send_and_receive(sent, timeout=30))

    assert grid.outcome is None
    assert clients.trained == []
    assert all(
        "contributes to no sum of fewer than 4" in str(train_messages.declined_reason(reply.content))
        for reply in replies
    )


def test_request_without_a_stage_raises() -> None:
    config = make_config()
    with pytest.raises(PayloadError, match="has no stage"):
        answer_stage(RecordDict(), RecordDict(), 1, config, RecordDict)

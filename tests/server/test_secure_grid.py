"""Secure rounds of the real strategy and the real client half, with clients that vanish between any two stages."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.secure_aggregation import answer_stage
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import FedSVDError, PayloadError
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
    words = ["experiment=smoke", "method=ffa_lora", "privacy=none", "federation.secure_aggregation=true"]
    return compose([*words, "federation.num_clients=5", *overrides])


def value_of(partition_id: int) -> float:
    return 0.1 * (partition_id + 1) * (-1) ** partition_id


class Clients:
    """Client k holds k + 1 examples and sends B full of `value_of(k)`; ``lost`` tells before which stage one dies."""

    def __init__(self, config: Config, lost: dict[int, str]) -> None:
        self.config, self.lost = config, lost
        self.trained: list[int] = []
        self.seen: list[tuple[int, Message, RecordDict]] = []
        self.app = ClientApp()
        self.app.query("partition")(self.partition)
        self.app.train()(self.train)

    def partition(self, message: Message, context: Context) -> Message:
        return Message(train_messages.partition_reply(int(context.node_config["partition-id"])), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if message.content.config_records[messages.RECORD]["stage"] == self.lost.get(number):
            raise RuntimeError("the power is gone")

        def local_round() -> RecordDict:
            self.trained.append(number)
            values = Array(np.full(2 * ROWS, value_of(number), dtype=np.float32))
            answered = train_messages.read_train_request(message.content)[0].server_round
            report = ClientReport(number, number + 1, 0.1, 1.5, 1.25, 0.5, 2, server_round=answered)
            return train_messages.train_reply(report, ArrayRecord({"B": values}))

        try:
            content = answer_stage(message.content, context.state, context.node_id, self.config, local_round)
        except FedSVDError as error:
            content = train_messages.declined_reply(str(error))
        self.seen.append((number, message, content))
        return Message(content, reply_to=message)


def play(
    clients: Clients, client_level: ClientLevelServer | None = None, between: Callable[[], None] | None = None
) -> tuple[FederatedLoRA, SecureGrid]:
    config = clients.config
    adapter = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(ROWS, 2)}, head={}, scale={"s": 1.0})
    grid = SecureGrid(InProcessGrid(clients.app, config.federation.num_clients, {}), config.federation.min_survivors)
    strategy = FederatedLoRA(build_method(config.method), config, adapter, 0, client_level, grid)
    sent = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    strategy.aggregate_train(1, grid.send_and_receive(sent, timeout=30))
    return strategy, grid


def weighted_mean(numbers: list[int]) -> float:
    return sum((k + 1) * value_of(k) for k in numbers) / sum(k + 1 for k in numbers)


@pytest.mark.parametrize("stage", ["nobody", "setup", "share", "collect", "unmask"])
@pytest.mark.parametrize("lost", [[1], [0, 4]])
def test_the_mean_is_that_of_those_who_sent_a_masked_vector(stage: str, lost: list[int]) -> None:
    clients = Clients(make_config(), dict.fromkeys(lost, stage))
    strategy, grid = play(clients)

    # Who vanishes before unmasking has sent its masked vector, and counts.
    there = [k for k in range(5) if k not in lost or stage in ("nobody", "unmask")]
    assert grid.outcome is not None, grid.reason
    assert grid.outcome.contributors == len(there)
    assert strategy.adapter.B["s"].numpy() == pytest.approx(weighted_mean(there), abs=1e-6)
    assert sorted(clients.trained) == there


@pytest.mark.parametrize("stage", ["setup", "share", "collect", "unmask"])
def test_with_too_few_survivors_the_round_is_skipped(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config("federation.min_survivors=3")
    strategy, grid = play(Clients(config, dict.fromkeys([0, 2, 4], stage)))

    assert grid.outcome is None
    assert strategy.round.skipped
    assert torch.equal(strategy.adapter.B["s"], torch.zeros(ROWS, 2))
    assert "2 of 5 clients" in caplog.text
    assert "are needed for a secure sum" in caplog.text


def test_what_a_server_sees_hides_values_and_sizes() -> None:
    clients = Clients(make_config(), {})
    play(clients)
    replies = [content for _, message, content in clients.seen
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


def test_every_stage_is_answered_once_and_in_order() -> None:
    clients = Clients(make_config(), {})
    play(clients)
    first = {m.content.config_records[messages.RECORD]["stage"]: m for number, m, _ in clients.seen if number == 0}
    grid = InProcessGrid(clients.app, 5, {})
    node = next(iter(first.values())).metadata.dst_node_id

    def ask(stage: str) -> str | None:
        message = Message(first[stage].content, node, "train")
        [reply] = grid.send_and_receive([message])
        return train_messages.declined_reason(reply.content)

    # A new client that has never been set up, then one whose session is another.
    assert "out of order" in str(ask("collect"))
    assert ask("setup") is None
    for stage in ("collect", "unmask"):
        assert "out of order" in str(ask(stage))
    # Shares with keys of an earlier set-up: not this client's own.
    assert "does not hold this client's own" in str(ask("share"))
    assert "out of order" in str(ask("share"))


def test_replays_after_a_round_reveal_nothing_more() -> None:
    config = make_config()
    clients = Clients(config, {})
    adapter = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(ROWS, 2)}, head={}, scale={"s": 1.0})
    inner = InProcessGrid(clients.app, 5, {})
    grid = SecureGrid(inner, 2)
    strategy = FederatedLoRA(build_method(config.method), config, adapter, 0, None, grid)
    list(grid.send_and_receive(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid), timeout=30))
    trained = list(clients.trained)

    for _, message, _ in list(clients.seen):
        if message.content.config_records[messages.RECORD]["stage"] != "setup":
            again = Message(message.content, message.metadata.dst_node_id, "train")
            [reply] = inner.send_and_receive([again])
            assert "out of order" in str(train_messages.declined_reason(reply.content))
    assert clients.trained == trained


def test_a_second_sum_of_one_round_gets_nothing_of_a_client() -> None:
    clients = Clients(make_config(), {})
    adapter = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(ROWS, 2)}, head={}, scale={"s": 1.0})
    grid = SecureGrid(InProcessGrid(clients.app, 5, {}), 2)
    strategy = FederatedLoRA(build_method(clients.config.method), clients.config, adapter, 0, None, grid)
    # All five, then four of them: the difference would be the fifth.
    list(grid.send_and_receive(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid), timeout=30))
    assert grid.outcome is not None
    sent = list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))[:4]
    replies = list(grid.send_and_receive(sent, timeout=30))

    assert grid.outcome is None
    assert all(
        "round 1 has had its masked vector" in str(train_messages.declined_reason(reply.content)) for reply in replies
    )
    assert len(clients.trained) == 5
    list(grid.send_and_receive(strategy.configure_train(2, ArrayRecord(), ConfigRecord(), grid), timeout=30))
    assert grid.outcome is not None


@pytest.mark.parametrize(
    ("alive", "dead", "said"),
    [
        ([0, 1], [2, 3, 4], "2 clients are said to have survived of 5; 3 are needed"),
        ([0, 1, 2, 3, 4], [4], "either alive or dead"),
        ([0, 1, 2, 3], [], "either alive or dead"),
        ([1, 2, 3, 4], [0], "either alive or dead"),
    ],
)
def test_a_client_gives_no_shares_for_a_story_that_does_not_fit(alive: list[int], dead: list[int], said: str) -> None:
    clients = Clients(make_config(), dict.fromkeys(range(5), "unmask"))
    inner = InProcessGrid(clients.app, 5, {})
    adapter = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(ROWS, 2)}, head={}, scale={"s": 1.0})
    grid = SecureGrid(inner, 2)
    strategy = FederatedLoRA(build_method(clients.config.method), clients.config, adapter, 0, None, grid)
    list(grid.send_and_receive(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid), timeout=30))
    clients.lost = {}
    nodes = sorted(inner.get_node_ids())
    session = clients.seen[0][1].content.config_records[messages.RECORD]["session"]
    content = messages.request("unmask", str(session), alive=[nodes[k] for k in alive], dead=[nodes[k] for k in dead])

    [reply] = inner.send_and_receive([Message(content, nodes[0], "train")])

    assert said in str(train_messages.declined_reason(reply.content))


def test_a_client_hides_among_as_many_as_it_wants() -> None:
    clients = Clients(make_config("federation.min_survivors=4"), {})
    adapter = Adapter(A={"s": torch.eye(2, 3)}, B={"s": torch.zeros(ROWS, 2)}, head={}, scale={"s": 1.0})
    # A server that is content with two, and sends three clients' keys alone.
    grid = SecureGrid(InProcessGrid(clients.app, 5, {}), 2)
    strategy = FederatedLoRA(build_method(clients.config.method), clients.config, adapter, 0, None, grid)
    sent = list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))[:3]
    replies = list(grid.send_and_receive(sent, timeout=30))

    assert grid.outcome is None
    assert clients.trained == []
    assert all(
        "hides in no sum of fewer than 4" in str(train_messages.declined_reason(reply.content)) for reply in replies
    )


def test_a_plain_request_is_no_secure_one() -> None:
    config = make_config()
    with pytest.raises(PayloadError, match="has no stage"):
        answer_stage(RecordDict(), RecordDict(), 1, config, RecordDict)

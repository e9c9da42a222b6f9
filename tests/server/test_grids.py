"""Replies one by one: late, lost and misdirected ones, on a transport whose every move is written down here."""

import logging
import time
from collections.abc import Iterable

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedsvd.config.compose import compose
from fedsvd.errors import RunError
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.wire import train_messages
from server.clients import Clients
from server.polling_grid import PollingGrid
from server.retry_grid import RetryGrid

Said = ConfigRecord | Error | None


class ScriptedGrid(InProcessGrid):
    """Node n's k-th message is answered with ``script[n][k]``; None: never. Flower's own errors come from node 1."""

    def __init__(self, script: dict[int, list[Said]], refused: tuple[int, ...] = ()) -> None:
        super().__init__(ClientApp(), 0, {})
        self.script = {node: list(said) for node, said in script.items()}
        self.refused = refused
        self.there = set(script)
        self.pushed: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.there)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        self.pushed += sent
        ids = list(super().push_messages(sent))
        return [None if m.metadata.dst_node_id in self.refused else i for m, i in zip(sent, ids, strict=True)]  # type: ignore[misc]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for message_id in list(message_ids):
            message = self._pending.get(message_id)
            said = self.script[message.metadata.dst_node_id] if message else []
            if message and said and (first := said.pop(0)) is not None:
                del self._pending[message_id]
                content = first if isinstance(first, Error) else RecordDict({"said": first})
                reply = Message(content, reply_to=message)  # type: ignore[arg-type]
                if isinstance(first, Error) and first.code in (3, 5):
                    reply.metadata.__dict__["_src_node_id"] = 1
                replies.append(reply)
        return replies


def ask(nodes: Iterable[int]) -> list[Message]:
    return [Message(RecordDict(), node, "train", group_id="4", ttl=5.0) for node in nodes]


def said(number: int) -> ConfigRecord:
    return ConfigRecord({"number": number})


def test_each_message_gets_one_reply_from_its_own_node() -> None:
    gone = Error(ErrorCode.NODE_UNAVAILABLE, "the node is gone")
    grid = ScriptedGrid({2: [said(2)], 3: [None] * 99, 4: [gone], 5: []}, refused=(5,))
    heard: list[int] = []

    replies = list(
        PollingGrid(grid, lambda r: heard.append(r.metadata.src_node_id)).send_and_receive(
            ask([2, 3, 4, 5]), timeout=0.3
        )
    )

    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    assert sorted(by_node) == [2, 3, 4, 5] == sorted(heard)
    assert by_node[2].content["said"]["number"] == 2
    assert by_node[3].error.reason == "no answer within 0.3 s (federation.round_timeout_s)"
    assert by_node[4].error.code == ErrorCode.NODE_UNAVAILABLE
    assert by_node[5].error.reason == "the transport did not take the message"


@pytest.mark.parametrize(("ttl", "told"), [(0.01, "no answer within 0.01 s"), (60.0, "not in the database")])
def test_a_message_that_expired_on_the_way_is_told_like_one_without_an_answer(ttl: float, told: str) -> None:
    grid = ScriptedGrid({2: [None, Error(ErrorCode.MESSAGE_UNAVAILABLE, "not in the database")]})
    message = Message(RecordDict(), 2, "train", group_id="4", ttl=ttl)

    [reply] = PollingGrid(grid).send_and_receive([message], timeout=30)

    assert reply.error.reason.startswith(told)


def test_a_reply_is_handed_on_before_the_next_one_is_there() -> None:
    grid = ScriptedGrid({2: [said(2)], 3: [None, None, said(3)]})
    replies = iter(PollingGrid(grid).send_and_receive(ask([2, 3]), timeout=30))

    assert next(replies).metadata.src_node_id == 2
    assert grid.script[3] == [None, said(3)]
    assert next(replies).metadata.src_node_id == 3


def test_what_passes_is_tried_again_and_what_stays_is_not(caplog: pytest.LogCaptureFixture) -> None:
    crashed, raised = Error(ErrorCode.CLIENT_APP_CRASHED, "killed"), Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "bug")
    grid = ScriptedGrid({2: [crashed, said(2)], 3: [raised, said(3)], 4: [crashed, crashed, said(4)]})
    asked: list[int] = []

    def in_full(message: Message) -> Message:
        asked.append(message.metadata.dst_node_id)
        return ask([message.metadata.dst_node_id])[0]

    resending = RetryGrid(PollingGrid(grid), in_full, retries=1, retry_after_s=0.01)
    with caplog.at_level(logging.WARNING):
        replies = {r.metadata.src_node_id: r for r in resending.send_and_receive(ask([2, 3, 4]), timeout=30)}

    assert sorted(asked) == [2, 4]
    assert replies[2].content["said"]["number"] == 2
    assert (replies[3].error.reason, replies[4].error.reason) == ("bug", "killed")
    assert sum("is sent its message again" in record.getMessage() for record in caplog.records) == 2


def test_tries_end_with_the_round() -> None:
    grid = ScriptedGrid({2: [Error(ErrorCode.CLIENT_APP_CRASHED, "killed")] * 99})
    resending = RetryGrid(PollingGrid(grid), lambda m: ask([2])[0], retries=50, retry_after_s=0.05)
    started = time.monotonic()

    replies = list(resending.send_and_receive(ask([2]), timeout=0.5))

    assert len(replies) == 1
    assert len(grid.pushed) < 10
    assert time.monotonic() - started < 10


def partition(number: object) -> ConfigRecord:
    return ConfigRecord({"partition": number})  # type: ignore[dict-item]


class NodesThatComeAndGo(ScriptedGrid):
    """Every node answers the query with its partition."""

    def __init__(self, partitions: dict[int, object]) -> None:
        super().__init__({})
        self.partitions = partitions
        self.there = set(partitions)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        for message in messages:
            self.pushed.append(message)
            held = self.partitions[message.metadata.dst_node_id]
            if isinstance(held, Error):
                replies.append(Message(held, reply_to=message))  # type: ignore[arg-type]
                continue
            content = {} if held is None else {train_messages.METRICS: MetricRecord({"partition-id": held})}  # type: ignore[dict-item]
            replies.append(Message(RecordDict(content), reply_to=message))  # type: ignore[arg-type]
        return replies


def test_a_node_that_comes_back_under_another_number_takes_its_place() -> None:
    federation = compose(["experiment=smoke", "federation.num_clients=3"]).federation
    grid = NodesThatComeAndGo({11: 0, 12: 1, 13: 2})
    clients = Clients(federation)
    clients.find(grid)
    assert clients.partitions == {11: 0, 12: 1, 13: 2}

    clients.find(grid)
    assert len(grid.pushed) == 3

    # Client 1 is gone and back; a fourth node claims what client 2 holds.
    grid.partitions |= {5: 1, 6: 2}
    grid.there = {11, 13, 5, 6}
    clients.find(grid)
    assert clients.partitions == {11: 0, 13: 2, 5: 1}
    assert clients.nodes == [11, 5, 13]
    assert len(grid.pushed) == 5


def test_a_node_that_did_not_say_what_it_holds_is_asked_again_while_a_client_is_missing() -> None:
    federation = compose(["experiment=smoke", "federation.num_clients=2", "federation.retries=2"]).federation
    grid = NodesThatComeAndGo({11: 0, 12: Error(ErrorCode.CLIENT_APP_CRASHED, "no room")})
    clients = Clients(federation)
    clients.find(grid)
    assert clients.partitions == {11: 0}

    grid.partitions[12] = 1
    clients.find(grid)
    assert clients.partitions == {11: 0, 12: 1}

    # All are there: one more is asked when it is new, and not again.
    grid.partitions[13] = Error(ErrorCode.CLIENT_APP_CRASHED, "no room")
    grid.there.add(13)
    clients.find(grid)
    clients.find(grid)
    # Node 12 is gone: 13 has two tries left.
    grid.there.remove(12)
    for _ in range(4):
        clients.find(grid)
    assert [message.metadata.dst_node_id for message in grid.pushed] == [11, 12, 12, 13, 13, 13]


@pytest.mark.parametrize("nonsense", [None, -1, 0.5, [1], 99])
def test_a_node_that_names_no_partition_is_left_alone(nonsense: object) -> None:
    federation = compose(
        ["experiment=smoke", "federation.num_clients=2", "federation.connect_timeout_s=0.1"]
    ).federation
    clients = Clients(federation)
    clients.find(NodesThatComeAndGo({11: 0, 12: nonsense}))
    assert clients.partitions == {11: 0}

    with pytest.raises(RunError, match="start the clients"):
        Clients(federation).find(NodesThatComeAndGo({12: nonsense}))

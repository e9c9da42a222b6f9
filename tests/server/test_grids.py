"""Polling and retrying on a scripted transport, with late, lost and misdirected replies; tracking of nodes."""

import logging
import time
from collections.abc import Iterable

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsvd.compat.flower import ErrorCode
from fedsvd.config.compose import compose
from fedsvd.errors import RunError
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.report.client_status import status_line
from fedsvd.runs.client_status import StatusBoard, read_statuses, statuses_document
from fedsvd.wire import train_messages
from server.clients import Clients
from server.polling_grid import PollingGrid
from server.retry_grid import RetryGrid

Answer = ConfigRecord | Error | None


class ScriptedGrid(InProcessGrid):
    """Grid that answers the k-th poll of node n with ``script[n][k]`` (None: no reply yet).

    The sender of Flower's own errors is node 1.
    """

    def __init__(self, script: dict[int, list[Answer]], refused: tuple[int, ...] = ()) -> None:
        super().__init__(ClientApp(), 0, {})
        self.script = {node: list(answers) for node, answers in script.items()}
        self.refused = refused
        self.connected = set(script)
        self.pushed: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.connected)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        self.pushed += sent
        ids = list(super().push_messages(sent))
        return [None if m.metadata.dst_node_id in self.refused else i for m, i in zip(sent, ids, strict=True)]  # type: ignore[misc]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for message_id in list(message_ids):
            message = self._pending.get(message_id)
            answers = self.script[message.metadata.dst_node_id] if message else []
            if message and answers and (first := answers.pop(0)) is not None:
                del self._pending[message_id]
                content = first if isinstance(first, Error) else RecordDict({"answer": first})
                reply = Message(content, reply_to=message)  # type: ignore[arg-type]
                if isinstance(first, Error) and first.code in (3, 5):
                    reply.metadata.__dict__["_src_node_id"] = 1
                replies.append(reply)
        return replies


def requests(nodes: Iterable[int]) -> list[Message]:
    return [Message(RecordDict(), node, "train", group_id="4", ttl=5.0) for node in nodes]


def answer(number: int) -> ConfigRecord:
    return ConfigRecord({"number": number})


def test_each_message_gets_one_reply_from_its_node() -> None:
    gone = Error(ErrorCode.NODE_UNAVAILABLE, "the node is gone")
    grid = ScriptedGrid({2: [answer(2)], 3: [None] * 99, 4: [gone], 5: []}, refused=(5,))
    reported: list[int] = []

    replies = list(
        PollingGrid(grid, lambda r: reported.append(r.metadata.src_node_id)).send_and_receive(
            requests([2, 3, 4, 5]), timeout=0.3
        )
    )

    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    assert sorted(by_node) == [2, 3, 4, 5] == sorted(reported)
    assert by_node[2].content["answer"]["number"] == 2
    assert by_node[3].error.reason == "no reply within 0.3 s (federation.round_timeout_s)"
    assert by_node[4].error.code == ErrorCode.NODE_UNAVAILABLE
    assert by_node[5].error.reason == "the message could not be sent"


@pytest.mark.parametrize(("ttl", "reason"), [(0.01, "no reply within 0.01 s"), (60.0, "not in the database")])
def test_expired_message_is_reported_like_a_missing_reply(ttl: float, reason: str) -> None:
    grid = ScriptedGrid({2: [None, Error(ErrorCode.MESSAGE_UNAVAILABLE, "not in the database")]})
    message = Message(RecordDict(), 2, "train", group_id="4", ttl=ttl)

    [reply] = PollingGrid(grid).send_and_receive([message], timeout=30)

    assert reply.error.reason.startswith(reason)


def test_reply_is_yielded_before_the_next_one_arrives() -> None:
    grid = ScriptedGrid({2: [answer(2)], 3: [None, None, answer(3)]})
    replies = iter(PollingGrid(grid).send_and_receive(requests([2, 3]), timeout=30))

    assert next(replies).metadata.src_node_id == 2
    assert grid.script[3] == [None, answer(3)]
    assert next(replies).metadata.src_node_id == 3


def test_transient_errors_are_retried_and_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    crashed, raised = Error(ErrorCode.CLIENT_APP_CRASHED, "killed"), Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "bug")
    grid = ScriptedGrid({2: [crashed, answer(2)], 3: [raised, answer(3)], 4: [crashed, crashed, answer(4)]})
    resent: list[int] = []

    def full_request(message: Message) -> Message:
        resent.append(message.metadata.dst_node_id)
        return requests([message.metadata.dst_node_id])[0]

    retry_grid = RetryGrid(PollingGrid(grid), full_request, retries=1, retry_after_s=0.01)
    with caplog.at_level(logging.WARNING):
        replies = {r.metadata.src_node_id: r for r in retry_grid.send_and_receive(requests([2, 3, 4]), timeout=30)}

    assert sorted(resent) == [2, 4]
    assert replies[2].content["answer"]["number"] == 2
    assert (replies[3].error.reason, replies[4].error.reason) == ("bug", "killed")
    assert sum("resending the message of" in record.getMessage() for record in caplog.records) == 2


def test_retries_end_at_the_timeout() -> None:
    grid = ScriptedGrid({2: [Error(ErrorCode.CLIENT_APP_CRASHED, "killed")] * 99})
    retry_grid = RetryGrid(PollingGrid(grid), lambda m: requests([2])[0], retries=50, retry_after_s=0.05)
    started = time.monotonic()

    replies = list(retry_grid.send_and_receive(requests([2]), timeout=0.5))

    assert len(replies) == 1
    assert len(grid.pushed) < 10
    assert time.monotonic() - started < 10


def partition(number: object) -> ConfigRecord:
    return ConfigRecord({"partition": number})  # type: ignore[dict-item]


class PartitionGrid(ScriptedGrid):
    """Grid whose nodes answer the partition query with ``partitions[node]``."""

    def __init__(self, partitions: dict[int, object]) -> None:
        super().__init__({})
        self.partitions = partitions
        self.connected = set(partitions)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        for message in messages:
            self.pushed.append(message)
            partition = self.partitions[message.metadata.dst_node_id]
            if isinstance(partition, Error | RecordDict):
                replies.append(Message(partition, reply_to=message))  # type: ignore[arg-type]
                continue
            content = {} if partition is None else {train_messages.METRICS: MetricRecord({"partition-id": partition})}  # type: ignore[dict-item]
            replies.append(Message(RecordDict(content), reply_to=message))  # type: ignore[arg-type]
        return replies


def test_node_that_reconnects_under_another_id_replaces_the_old_one() -> None:
    federation = compose(["experiment=smoke", "federation.num_clients=3"]).federation
    grid = PartitionGrid({11: 0, 12: 1, 13: 2})
    clients = Clients(federation)
    clients.refresh(grid)
    assert clients.partitions == {11: 0, 12: 1, 13: 2}

    clients.refresh(grid)
    assert len(grid.pushed) == 3

    # Client 1 reconnects under another ID; a fourth node claims the partition of client 2.
    grid.partitions |= {5: 1, 6: 2}
    grid.connected = {11, 13, 5, 6}
    clients.refresh(grid)
    assert clients.partitions == {11: 0, 13: 2, 5: 1}
    assert clients.nodes == [11, 5, 13]
    assert len(grid.pushed) == 5


def test_node_that_did_not_answer_is_queried_again_while_a_client_is_missing() -> None:
    federation = compose(["experiment=smoke", "federation.num_clients=2", "federation.retries=2"]).federation
    grid = PartitionGrid({11: 0, 12: Error(ErrorCode.CLIENT_APP_CRASHED, "no memory")})
    clients = Clients(federation)
    clients.refresh(grid)
    assert clients.partitions == {11: 0}

    grid.partitions[12] = 1
    clients.refresh(grid)
    assert clients.partitions == {11: 0, 12: 1}

    # All clients are connected: another node is queried once.
    grid.partitions[13] = Error(ErrorCode.CLIENT_APP_CRASHED, "no memory")
    grid.connected.add(13)
    clients.refresh(grid)
    clients.refresh(grid)
    # Node 12 disconnects: node 13 has two attempts left.
    grid.connected.remove(12)
    for _ in range(4):
        clients.refresh(grid)
    assert [message.metadata.dst_node_id for message in grid.pushed] == [11, 12, 12, 13, 13, 13]


@pytest.mark.parametrize("partition_id", [None, -1, 0.5, [1], 99])
def test_node_without_a_valid_partition_is_ignored(partition_id: object) -> None:
    federation = compose(
        ["experiment=smoke", "federation.num_clients=2", "federation.connect_timeout_s=0.1"]
    ).federation
    clients = Clients(federation)
    clients.refresh(PartitionGrid({11: 0, 12: partition_id}))
    assert clients.partitions == {11: 0}

    with pytest.raises(RunError, match="start the clients"):
        Clients(federation).refresh(PartitionGrid({12: partition_id}))


def test_board_of_clients_shows_who_is_connected_training_and_excluded() -> None:
    federation = compose(["experiment=smoke", "federation.num_clients=3"]).federation
    changes: list[str] = []
    board = StatusBoard(
        3, lambda clients, status: changes.append(status_line(clients, status)), iter(range(99)).__next__
    )
    clients = Clients(federation, board)
    clients.refresh(PartitionGrid({11: 0, 12: 1, 13: train_messages.partition_reply(2, "DataError: no such file")}))
    assert clients.request([11, 12], 4) == (0, 1)
    board.replied(1, 0.5)
    board.excluded(0, "no reply within 2 s")
    # Neither a second reply nor a number that no client has changes anything.
    board.excluded(1, "a second reply")
    board.excluded(-1, "unknown")
    assert changes == [
        "client 2 excluded: DataError: no such file",
        "client 0 connected",
        "client 1 connected",
        "round 4: waiting for clients 0, 1",
        "round 4: client 1 replied after 1.0 s (0.5 s of training)",
        "round 4: client 0 excluded after 2.0 s: no reply within 2 s",
    ]
    assert read_statuses(statuses_document(board.statuses)) == board.statuses

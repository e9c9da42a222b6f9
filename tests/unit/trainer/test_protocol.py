"""Frames, and Flower's serialization, which has private names: these tests fail if they move or miss something."""

import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedsvd.compat.flower import (
    context_from_bytes,
    context_to_bytes,
    current_task_id,
    message_from_bytes,
    message_to_bytes,
    set_message_id,
    set_task_identity,
)
from fedsvd.errors import BudgetExceededError
from fedsvd.trainer import protocol
from fedsvd.trainer.protocol import Channel, Kind


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    pair = [Channel(end, time.monotonic() + 30) for end in socket.socketpair()]
    yield pair[0], pair[1]
    for channel in pair:
        channel.close()


@pytest.fixture
def records() -> RecordDict:
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    config = ConfigRecord({"bytes": b"\0\xff", "list": [1, 2], "flag": True, "text": "ü", "number": 2**40})
    return RecordDict({"a": ArrayRecord({"B": Array(array)}), "m": MetricRecord({"x": 0.1, "n": 3}), "c": config})


def test_message_arrives_with_its_records_and_all_metadata(records: RecordDict) -> None:
    set_task_identity(3, 7, 2**63 + 1)
    message = Message(records, 5, "query.partition", ttl=12.5, group_id="4", dst_task_id=9)
    # The ledger charges a message by this ID, which Flower sets on arrival.
    set_message_id(message, "an id")
    copy = message_from_bytes(message_to_bytes(message))

    assert vars(copy.metadata) == vars(message.metadata)
    assert copy.content == records
    reply = Message(RecordDict(), reply_to=copy)
    assert reply.metadata.reply_to_message_id == "an id"


def test_context_arrives_in_full(records: RecordDict) -> None:
    node_config = {"partition-id": 1, "ledger": "/x", "max-epsilon": 6.0, "share-counts": False}
    context = Context(7, 2**63 + 1, node_config, records, {"overrides": "a=1"}, 4)
    copy = context_from_bytes(context_to_bytes(context))

    assert vars(copy) == vars(context)
    assert set(vars(context)) == {"run_id", "node_id", "node_config", "state", "run_config", "series_id"}


def test_task_identity_is_what_flower_attaches_to_messages() -> None:
    set_task_identity(11, 12, 13)
    metadata = Message(RecordDict(), 5, "train").metadata

    assert current_task_id() == 11
    assert (metadata.src_task_id, metadata.run_id, metadata.src_node_id) == (11, 12, 13)


def test_frames_arrive_in_order_from_any_thread(channels: tuple[Channel, Channel]) -> None:
    here, there = channels
    contents = [bytes([number]) * 300_000 for number in range(8)]
    threads = [threading.Thread(target=here.send, args=(Kind.LOG, content)) for content in contents]
    for thread in threads:
        thread.start()
    assert sorted(there.expect(Kind.LOG) for _ in contents) == contents
    for thread in threads:
        thread.join()


def test_a_lost_or_foreign_other_side_is_an_error(channels: tuple[Channel, Channel]) -> None:
    here, there = channels
    here.socket.sendall(struct.pack(">BQ", 99, 1))
    with pytest.raises(ConnectionError, match="frame of kind 99"):
        there.receive()
    here.socket.sendall(struct.pack(">BQ", Kind.LOG, 2**40))
    with pytest.raises(ConnectionError, match=f"{2**40} bytes"):
        there.receive()
    here.send(Kind.LOG, b"")
    with pytest.raises(ConnectionError, match="expected REPLY, received LOG"):
        there.expect(Kind.REPLY)
    here.socket.sendall(struct.pack(">BQ", Kind.LOG, 5) + b"part")
    here.close()
    with pytest.raises(ConnectionError, match="was closed"):
        there.receive()


def test_deadline_ends_receiving_and_sending(channels: tuple[Channel, Channel]) -> None:
    here = channels[0]
    here.deadline = time.monotonic() + 0.05
    with pytest.raises(TimeoutError):
        here.receive()
    here.deadline = time.monotonic() + 0.05
    with pytest.raises(TimeoutError):
        here.send(Kind.MESSAGE, bytes(10_000_000))


def test_failures_keep_the_class_of_the_librarys_errors() -> None:
    budget = protocol.failure_from_json(protocol.failure_to_json(BudgetExceededError("ε is spent")))
    other = protocol.failure_from_json(protocol.failure_to_json(KeyError("x")))

    assert (type(budget), str(budget)) == (BudgetExceededError, "ε is spent")
    assert (type(other), str(other)) == (RuntimeError, "KeyError: 'x'")

"""A reply whose bytes Flower cannot read: it costs that reply alone, and the run goes on."""

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.superlink.grid.http_grid import HttpGrid

from fedsvd.compat.flower import Run, set_task_identity, to_objects
from server.polling_grid import PollingGrid


class StoredReplies:
    """The SuperLink's side of Flower's network grid, with one reply to each message."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.response = SimpleNamespace(messages_list=[], message_object_trees=[])

    def store(self, reply: Message, damage: tuple[bytes, bytes]) -> None:
        message_id, contents = to_objects(reply)
        self.contents |= {key: content.replace(*damage) for key, content in contents.items()}
        self.response.messages_list.append(SimpleNamespace(metadata=SimpleNamespace(message_id=message_id)))
        parts = [SimpleNamespace(object_id=key, children=[]) for key in contents if key != message_id]
        self.response.message_object_trees.append(SimpleNamespace(object_id=message_id, children=parts))

    def PullMessages(self, request: Any) -> SimpleNamespace:  # noqa: N802
        return self.response

    def PullObject(self, request: Any) -> SimpleNamespace:  # noqa: N802
        content = self.contents[request.object_id]
        return SimpleNamespace(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        pass


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ((b"words", b"\xff" * 5), "DecodeError"),
        ((b"ConfigRecord ", b"UnknownThing "), "KeyError"),
        ((b"words", b"words"), None),
    ],
)
def test_unreadable_reply_is_an_error_of_its_node_alone(damage: tuple[bytes, bytes], reason: str | None) -> None:
    set_task_identity(1, 7, 1)
    requests = [Message(RecordDict(), node, "train", group_id="3", ttl=60.0) for node in (2, 3)]
    stored, grid = StoredReplies(), HttpGrid(token="token")
    grid._client, grid._run = stored, Run.create_empty(7)  # type: ignore[assignment]
    for number, request in enumerate(requests):
        request.metadata.__dict__["_message_id"] = f"request {number}"
        content = RecordDict({"a": ConfigRecord({"words": f"of client {number}"})})
        stored.store(Message(content, reply_to=request), damage if number == 0 else (b"", b""))
    polling = PollingGrid(grid)
    polling.push_messages = lambda sent: [message.metadata.message_id for message in sent]  # type: ignore[method-assign]

    replies = {reply.metadata.src_node_id: reply for reply in polling.send_and_receive(requests, timeout=1)}

    assert not replies[3].has_error()
    assert replies[2].has_error() == (reason is not None)
    if reason is not None:
        assert replies[2].error.reason == f"the reply cannot be read ({reason})"

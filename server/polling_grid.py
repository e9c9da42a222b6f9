"""A Grid that returns one reply for each message as it comes in, and asks more often than Flower's own does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedsvd.launch.forwarding_grid import ForwardingGrid

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.5


class PollingGrid(ForwardingGrid):
    """Pass everything to another grid, but wait for replies with growing pauses and hand on each one as it arrives.

    Flower's own network grid sleeps three seconds between two looks; most rounds are over sooner than that.

    Every message gets exactly one reply, from the node that it was sent to: what did not come in time, could not be
    sent, or came from somebody else becomes an error reply of that node. (Flower's own notes of lost nodes and expired
    messages carry its SuperLink as their sender.)

    Args:
        grid: The grid that does the work.
        on_reply: Called with every reply as it arrives; by default nobody is told.
    """

    def __init__(self, grid: Grid, on_reply: Callable[[Message], None] = lambda reply: None) -> None:
        super().__init__(grid)
        self._on_reply = on_reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send all messages now; yield replies until the last has come or ``timeout`` seconds have passed."""
        sent = list(messages)
        started = time.monotonic()
        ids = list(self.push_messages(sent)) if sent else []
        return self._replies(sent, [*ids, *[None] * (len(sent) - len(ids))], started, timeout)

    def _replies(
        self, sent: list[Message], ids: list[str | None], started: float, timeout: float | None
    ) -> Iterator[Message]:
        waiting = {message_id: message for message_id, message in zip(ids, sent, strict=True) if message_id}
        for message_id, message in zip(ids, sent, strict=True):
            if not message_id:
                yield self._told(_failed(message, ErrorCode.UNKNOWN, "the transport did not take the message"))
        del sent
        pause = FIRST_PAUSE_S
        while waiting:
            arrived = 0
            for reply in self.pull_messages(set(waiting)):
                asked = reply.metadata.reply_to_message_id
                if asked not in waiting:
                    logger.warning("node %d answers what it was not asked; dropped", reply.metadata.src_node_id)
                    continue
                arrived += 1
                yield self._told(_from_its_node(reply, waiting.pop(asked)))
            if not waiting or (timeout is not None and time.monotonic() - started >= timeout):
                break
            pause = FIRST_PAUSE_S if arrived else min(LONGEST_PAUSE_S, pause * 1.3)
            if not arrived:
                time.sleep(pause)
        for message in waiting.values():
            yield self._told(_failed(message, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, _late(timeout or 0.0)))

    def _told(self, reply: Message) -> Message:
        self._on_reply(reply)
        return reply


def _from_its_node(reply: Message, message: Message) -> Message:
    if reply.has_error():
        # The SuperLink may have let go of the message a moment before the deadline is looked at here.
        expired = time.time() >= message.metadata.created_at + message.metadata.ttl
        unavailable = reply.error.code in (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        reason = _late(message.metadata.ttl) if expired and unavailable else reply.error.reason or ""
        return _failed(message, reply.error.code, reason)
    one, other = reply.metadata, message.metadata
    if (one.src_node_id, one.message_type, one.group_id) != (other.dst_node_id, other.message_type, other.group_id):
        reason = f"the reply is node {one.src_node_id}'s {one.message_type} of round {one.group_id or 'none'}"
        return _failed(message, ErrorCode.MOD_FAILED_PRECONDITION, reason)
    return reply


def _late(seconds: float) -> str:
    return f"no answer within {seconds:g} s (federation.round_timeout_s)"


def _failed(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)

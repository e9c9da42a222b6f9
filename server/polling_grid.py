"""A Grid that yields exactly one reply per message as replies arrive, and polls more often than Flower's own grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Error, Message
from flwr.serverapp import Grid

from fedsvd.compat.flower import ErrorCode, replace_unreadable_messages
from fedsvd.launch.forwarding_grid import ForwardingGrid
from fedsvd.wire import train_messages

logger = logging.getLogger(__name__)

MIN_PAUSE_S = 0.05
MAX_PAUSE_S = 0.5


class PollingGrid(ForwardingGrid):
    """Forward all calls to another grid, but poll for replies with growing pauses and yield each as it arrives.

    Flower's network grid sleeps three seconds between two polls; most rounds take less time than that.

    Each message gets exactly one reply, from the node that it was sent to. If the message could not be sent, or its
    reply is missing after the timeout or came from another node, an error reply of the addressed node replaces it.
    (The sender of Flower's own errors about lost nodes and expired messages is the SuperLink.) A reply that cannot be
    read is an error of its node.

    Args:
        grid: The grid to forward to.
        on_reply: Called with each reply as it arrives; does nothing by default.
    """

    def __init__(self, grid: Grid, on_reply: Callable[[Message], None] = lambda reply: None) -> None:
        super().__init__(grid)
        replace_unreadable_messages()
        self._on_reply = on_reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send all messages now; yield replies until all have arrived or ``timeout`` seconds have passed."""
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
                yield self._notify(_error_reply(message, ErrorCode.UNKNOWN, "the message could not be sent"))
        del sent
        pause = MIN_PAUSE_S
        while waiting:
            arrived = 0
            for reply in self.pull_messages(set(waiting)):
                message_id = reply.metadata.reply_to_message_id
                if message_id not in waiting:
                    logger.warning("dropped a reply of node %d to an unknown message", reply.metadata.src_node_id)
                    continue
                arrived += 1
                yield self._notify(_validate_sender(reply, waiting.pop(message_id)))
            if not waiting or (timeout is not None and time.monotonic() - started >= timeout):
                break
            pause = MIN_PAUSE_S if arrived else min(MAX_PAUSE_S, pause * 1.3)
            if not arrived:
                time.sleep(pause)
        for message in waiting.values():
            reason = _timeout_reason(message, timeout or 0.0)
            yield self._notify(_error_reply(message, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))

    def _notify(self, reply: Message) -> Message:
        self._on_reply(reply)
        return reply


def _validate_sender(reply: Message, message: Message) -> Message:
    if reply.has_error():
        # The SuperLink may have dropped the expired message shortly before this grid noticed the deadline.
        expired = time.time() >= message.metadata.created_at + message.metadata.ttl
        unavailable = reply.error.code in (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        reason = _timeout_reason(message, message.metadata.ttl) if expired and unavailable else reply.error.reason or ""
        return _error_reply(message, reply.error.code, reason)
    answer, request = reply.metadata, message.metadata
    expected = request.dst_node_id, request.message_type, request.group_id
    if (answer.src_node_id, answer.message_type, answer.group_id) != expected:
        reason = (
            f"the reply is from node {answer.src_node_id}, of type {answer.message_type} and round "
            f"{answer.group_id or 'none'}: it does not match the request"
        )
        return _error_reply(message, ErrorCode.MOD_FAILED_PRECONDITION, reason)
    return reply


def _timeout_reason(message: Message, seconds: float) -> str:
    is_query = message.metadata.message_type == train_messages.PARTITION_QUERY
    key = "connect_timeout_s" if is_query else "round_timeout_s"
    return f"no reply within {seconds:g} s (federation.{key})"


def _error_reply(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)

"""A Grid that resends messages: in full to clients with a stale cache, and to clients that failed temporarily."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedsvd.compat.flower import ErrorCode
from fedsvd.launch.forwarding_grid import ForwardingGrid
from fedsvd.wire import train_messages
from server.round_time import time_left

logger = logging.getLogger(__name__)

# Errors that a retry may resolve: a dead worker, a lost message, an unavailable node, a crashed ClientApp. A ClientApp
# that raises an exception is not among them: it would raise again.
TRANSIENT_ERRORS = (
    ErrorCode.UNKNOWN,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)


class RetryGrid(ForwardingGrid):
    """Forward all calls; resend messages, within the round, to clients that ask for it, crash or are unavailable.

    Args:
        grid: The grid to forward to.
        full_request: Function from a train message to a new one that does not rely on the client's cache. Other
            messages rely on none, and are resent as they are.
        retries: How many times a message is resent to a client that crashed or is unavailable.
        retry_after_s: Seconds before the first retry; doubled for each further one.
        on_lost: Called with the node of each failed attempt that is followed by another one.
        logs: Whether the log may name the nodes of a round.
    """

    def __init__(
        self,
        grid: Grid,
        full_request: Callable[[Message], Message],
        retries: int = 0,
        retry_after_s: float = 0.0,
        on_lost: Callable[[int], None] = lambda node: None,
        *,
        logs: bool = True,
    ) -> None:
        super().__init__(grid)
        self._full_request = full_request
        self._retries = retries
        self._retry_after_s = retry_after_s
        self._on_lost = on_lost
        self._logs = logs

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send all messages; yield one reply each as they arrive. ``timeout`` applies to all attempts together."""
        started = time.monotonic()
        sent = {message.metadata.dst_node_id: message for message in messages}
        return self._replies(sent, self._grid.send_and_receive(sent.values(), timeout=timeout), started, timeout)

    def _replies(
        self, sent: dict[int, Message], replies: Iterable[Message], started: float, timeout: float | None
    ) -> Iterator[Message]:
        resent_in_full: set[int] = set()
        retries: Counter[int] = Counter()
        while sent:
            resend, pause = [], 0.0
            for reply in replies:
                node = reply.metadata.src_node_id
                if not reply.has_error() and train_messages.asks_resend(reply.content) and node not in resent_in_full:
                    resent_in_full.add(node)
                elif self._should_retry(reply, retries[node], _remaining(started, timeout)):
                    pause = max(pause, self._retry_after_s * 2 ** retries[node])
                    retries[node] += 1
                    self._on_lost(node)
                    if self._logs:
                        reason = train_messages.one_line(reply.error.reason or "no reason given")
                        logger.warning("resending the message of node %d in %g s: %s", node, pause, reason)
                else:
                    yield reply
                    continue
                resend.append(sent[node])
            if resend:
                time.sleep(pause)
            remaining = _remaining(started, timeout)
            sent = {message.metadata.dst_node_id: self._renewed(message, remaining) for message in resend}
            replies = self._grid.send_and_receive(sent.values(), timeout=remaining) if sent else []

    def _renewed(self, message: Message, ttl: float | None) -> Message:
        request = message.metadata
        if request.message_type == MessageType.TRAIN:
            return self._full_request(message)
        return Message(message.content, request.dst_node_id, request.message_type, ttl=ttl, group_id=request.group_id)

    def _should_retry(self, reply: Message, retries: int, remaining: float | None) -> bool:
        transient = reply.has_error() and reply.error.code in TRANSIENT_ERRORS and retries < self._retries
        return transient and (remaining is None or remaining > self._retry_after_s * 2**retries)


def _remaining(started: float, timeout: float | None) -> float | None:
    return None if timeout is None else time_left(timeout, time.monotonic() - started)

"""A Grid that sends again: in full to clients that have lost what they held, and to clients that come back."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedsvd.launch.forwarding_grid import ForwardingGrid
from fedsvd.wire import train_messages

logger = logging.getLogger(__name__)

# What may be over a moment later: a worker that died, a message that did not get through, a node that was gone, a
# ClientApp that crashed. One that raises would do so again.
TRANSIENT_ERRORS = (
    ErrorCode.UNKNOWN,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)


class RetryGrid(ForwardingGrid):
    """Pass everything on; send again, within the same round, to clients that ask for it, crash or are gone.

    Args:
        grid: The grid that does the work.
        in_full: From a message to a new one that holds all that it took for granted.
        retries: How often a message is sent again to a client that crashed or is gone.
        retry_after_s: Seconds before it is; doubled each time.
    """

    def __init__(
        self, grid: Grid, in_full: Callable[[Message], Message], retries: int = 0, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(grid)
        self._in_full = in_full
        self._retries = retries
        self._retry_after_s = retry_after_s

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send all messages; yield one reply each as they come. ``timeout`` is for all attempts together."""
        started = time.monotonic()
        sent = {message.metadata.dst_node_id: message for message in messages}
        return self._replies(sent, self._grid.send_and_receive(sent.values(), timeout=timeout), started, timeout)

    def _replies(
        self, sent: dict[int, Message], replies: Iterable[Message], started: float, timeout: float | None
    ) -> Iterator[Message]:
        filled: set[int] = set()
        tried: Counter[int] = Counter()
        while sent:
            again, pause = [], 0.0
            for reply in replies:
                node = reply.metadata.src_node_id
                if not reply.has_error() and train_messages.asks_resend(reply.content) and node not in filled:
                    filled.add(node)
                elif self._may_pass(reply, tried[node], _left(started, timeout)):
                    pause = max(pause, self._retry_after_s * 2 ** tried[node])
                    tried[node] += 1
                    why = train_messages.one_line(reply.error.reason or "no reason given")
                    logger.warning("node %d is sent its message again, in %g s: %s", node, pause, why)
                else:
                    yield reply
                    continue
                again.append(sent[node])
            if again:
                time.sleep(pause)
            sent = {message.metadata.dst_node_id: self._in_full(message) for message in again}
            replies = self._grid.send_and_receive(sent.values(), timeout=_left(started, timeout)) if sent else []

    def _may_pass(self, reply: Message, tries: int, left: float | None) -> bool:
        passing = reply.has_error() and reply.error.code in TRANSIENT_ERRORS and tries < self._retries
        return passing and (left is None or left > self._retry_after_s * 2**tries)


def _left(started: float, timeout: float | None) -> float | None:
    return None if timeout is None else max(0.1, timeout - (time.monotonic() - started))

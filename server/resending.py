"""A Grid that sends again, in full, to clients that have lost what they were taken to hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fedsvd import wire
from fedsvd.launch.grid import ForwardingGrid


class ResendingGrid(ForwardingGrid):
    """Pass everything on; answer each "I do not hold that" with the whole request, within the same round.

    Args:
        grid: The grid that does the work.
        in_full: From a message to the one that holds all that it took for granted.
    """

    def __init__(self, grid: Grid, in_full: Callable[[Message], Message]) -> None:
        super().__init__(grid)
        self._in_full = in_full

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send all messages, and once more to those that ask for it; ``timeout`` is for both together."""
        sent = {message.metadata.dst_node_id: message for message in messages}
        started = time.monotonic()
        replies = list(self._grid.send_and_receive(sent.values(), timeout=timeout))
        lost = [reply for reply in replies if not reply.has_error() and wire.is_lost(reply.content)]
        if not lost:
            return replies
        again = [self._in_full(sent[reply.metadata.src_node_id]) for reply in lost]
        left = None if timeout is None else max(0.1, timeout - (time.monotonic() - started))
        return [r for r in replies if r not in lost] + list(self._grid.send_and_receive(again, timeout=left))

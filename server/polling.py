"""A Grid that hears of each reply as it comes in, and asks more often than Flower's own does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fedsvd.launch.grid import ForwardingGrid

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class PollingGrid(ForwardingGrid):
    """Pass everything to another grid, but wait for replies with growing pauses and report each one.

    Flower's own network grid sleeps three seconds between two looks; most rounds are over sooner than that.

    Args:
        grid: The grid that does the work.
        on_reply: Called with every reply as it arrives; by default nobody is told.
    """

    def __init__(self, grid: Grid, on_reply: Callable[[Message], None] = lambda reply: None) -> None:
        super().__init__(grid)
        self._on_reply = on_reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send all messages and collect replies until the last has come or ``timeout`` seconds have passed."""
        waiting = {message_id for message_id in self.push_messages(messages) if message_id}
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        pause = FIRST_PAUSE_S
        while waiting:
            arrived = list(self.pull_messages(waiting))
            for reply in arrived:
                waiting.discard(reply.metadata.reply_to_message_id)
                self._on_reply(reply)
            replies += arrived
            if not waiting or (deadline is not None and time.monotonic() >= deadline):
                break
            pause = FIRST_PAUSE_S if arrived else min(LONGEST_PAUSE_S, pause * 1.3)
            if not arrived:
                time.sleep(pause)
        return replies

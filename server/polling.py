"""A Grid that hears of each reply as it comes in, and asks more often than Flower's own does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class PollingGrid(Grid):
    """Pass everything to another grid, but wait for replies with growing pauses and report each one.

    Flower's own network grid sleeps three seconds between two looks; most rounds are over sooner than that.

    Args:
        grid: The grid that does the work.
        on_reply: Called with every reply as it arrives.
    """

    def __init__(self, grid: Grid, on_reply: Callable[[Message], None]) -> None:
        self._grid = grid
        self._on_reply = on_reply

    def set_run(self, run: Run) -> None:
        """See `flwr.serverapp.Grid`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See `flwr.serverapp.Grid`."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `flwr.serverapp.Grid`."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See `flwr.serverapp.Grid`."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `flwr.serverapp.Grid`."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `flwr.serverapp.Grid`."""
        return self._grid.pull_messages(message_ids)

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

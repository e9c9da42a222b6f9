"""A filter of Flower's log: one line when a connection is lost, and one when it is back."""

from __future__ import annotations

import logging
import threading

LOST = "Connection attempt failed; retrying until it succeeds"
_ATTEMPT = "Connection attempt failed, retrying"
_BACK = "Connection successful after"


class ReconnectFilter(logging.Filter):
    """Pass the first of Flower's records about failed attempts to connect, and the first about the success.

    Flower logs each attempt, in each of its threads: some hundred lines in an hour.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._lost = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged."""
        message = str(record.msg)
        if not message.startswith((_ATTEMPT, _BACK)):
            return True
        with self._lock:
            before, self._lost = self._lost, message.startswith(_ATTEMPT)
        if self._lost:
            record.msg, record.args = LOST, ()
        return before != self._lost


def log_reconnects_once() -> None:
    """Add the filter to Flower's log in this process, once."""
    logger = logging.getLogger("flwr")
    if not any(isinstance(item, ReconnectFilter) for item in logger.filters):
        logger.addFilter(ReconnectFilter())

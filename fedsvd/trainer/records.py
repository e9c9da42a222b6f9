"""Log records of the trainer, logged by the ClientApp process that waits for the reply."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fedsvd.trainer.protocol import Channel, Kind


@contextmanager
def records_to(channel: Channel, level: int) -> Iterator[None]:
    """Send all log records from a level on, and warnings, to the other side of a channel, inside the context."""
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    handlers, level_before, flower_handlers = root.handlers, root.level, flower.handlers
    logging.captureWarnings(True)
    # Flower's records also reach the root logger.
    root.handlers, flower.handlers = [_Sender(channel)], []
    root.setLevel(level)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers, flower.handlers = handlers, flower_handlers
        root.setLevel(level_before)


def log_record(content: bytes) -> None:
    """Log a record that the other side has sent."""
    record = logging.makeLogRecord(json.loads(content))
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


class _Sender(logging.Handler):
    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            content = {
                "name": record.name,
                "levelno": record.levelno,
                "levelname": record.levelname,
                "created": record.created,
                "msg": record.getMessage(),
                "exc_text": self._formatter.formatException(record.exc_info) if record.exc_info else None,
            }
            self._channel.send_json(Kind.LOG, content)
        except OSError:
            # The reply is lost as well then; the watcher ends the process.
            return
        except Exception:
            self.handleError(record)

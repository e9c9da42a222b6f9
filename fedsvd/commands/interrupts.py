"""Ctrl-C that always ends a command, also where a library catches the `KeyboardInterrupt`.

Libraries that import lazily catch every exception of an import: some replace it by an `ImportError`, others continue
without the module.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_CHECK_INTERVAL_S = 0.5


class InterruptGuard:
    """A context in which a `KeyboardInterrupt` is raised again if it was caught.

    Attributes:
        received: Whether the user has interrupted the command, so that any exception is a consequence.
    """

    def __init__(self) -> None:
        self.received = False
        self._ended = threading.Event()
        self._is_installed = False
        self._main_thread = threading.get_ident()

    def __enter__(self) -> InterruptGuard:
        # Without effect where SIGINT is ignored, as in the background of a shell, or has another handler.
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
            self._is_installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Restore the handler, also if an interrupt arrived before the context could end; again, it does nothing."""
        self._ended.set()
        if self._is_installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._is_installed = False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._ended.is_set():
            return
        if not self.received:
            self.received = True
            threading.Thread(target=self._repeat, daemon=True).start()
        raise KeyboardInterrupt

    def _repeat(self) -> None:
        while not self._ended.wait(_CHECK_INTERVAL_S):
            # Not while the main thread handles the interrupt: it may be writing files.
            handled: Any = sys._current_exceptions().get(self._main_thread)
            # Before Python 3.12, a tuple of type, value and traceback.
            if not _is_caused_by_interrupt(handled[1] if isinstance(handled, tuple) else handled):
                os.kill(os.getpid(), signal.SIGINT)


def _is_caused_by_interrupt(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False

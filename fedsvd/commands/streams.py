"""Standard output and standard error that do not end a command: closed pipes, and terminals without Unicode."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class TolerantStream:
    """A text stream whose reader may go away, as in ``| head -1``: what is written then is discarded.

    Args:
        stream: The stream that is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._handle(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._handle(error)

    def _handle(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            # For the message: the disk that a shell redirects the output to may be full.
            error.filename = "the output of this command"
            raise error
        # The interpreter flushes the original stream when it exits, so its descriptor must accept the buffered text.
        with suppress(OSError, ValueError):
            discard(self._stream)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def discard(stream: TextIO) -> None:
    """Send what is written to a stream's descriptor from now on to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """Replace both output streams by tolerant ones, inside the context.

    Characters that the terminal's encoding lacks are replaced by question marks.
    """
    earlier = sys.stdout, sys.stderr
    errors = [getattr(stream, "errors", None) for stream in earlier]
    for stream in earlier:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Either is None in a process that was started with the descriptor closed.
    sys.stdout, sys.stderr = (cast(TextIO, TolerantStream(stream or io.StringIO())) for stream in earlier)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = earlier
        for stream, handler in zip(earlier, errors, strict=True):
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                with suppress(OSError):
                    stream.reconfigure(errors=handler)

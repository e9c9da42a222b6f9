"""A trainer that is started before the first message, and started again whenever it ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsvd.errors import TrainerError
from fedsvd.trainer import sockets
from fedsvd.trainer.watcher import ProcessIdentity

_MAX_FAILURES = 3
_FAILURE_S = 10.0


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen on a socket inside the context.

    Raises:
        TrainerError: If its path cannot be used, or another trainer listens there.
    """
    sockets.check_length(path, "choose a shorter path")
    if (connected := sockets.connect(path)) is not None:
        connected.close()
        raise TrainerError(f"another trainer listens on {path}: end it first, or choose another path.")
    try:
        listener = sockets.listen(path)
    except OSError as error:
        raise TrainerError(
            f"{path} cannot be created ({error.strerror}): choose a path in another directory."
        ) from error
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def supervise(listener: socket.socket) -> None:
    """Keep a trainer that answers messages, until an interrupt.

    It has imported torch and transformers before its first message. It is another process for each run, and after it
    was idle or was killed; messages that arrive in between wait in the queue of the socket.

    Raises:
        TrainerError: If the trainer fails repeatedly.
    """
    command = [sys.executable, "-P", "-m", "fedsvd.trainer.service", "--listener", str(listener.fileno()), "--preload"]
    command += ["--executor", str(ProcessIdentity.of(os.getpid()))]
    failures = status = 0
    while failures < _MAX_FAILURES:
        started = time.monotonic()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()]) as process:  # noqa: S603
            try:
                status = process.wait()
            except BaseException:
                process.kill()
                raise
        failures = failures + 1 if status and time.monotonic() - started < _FAILURE_S else 0
    raise TrainerError(f"the trainer failed {failures} times at its start, with exit status {status}: see above.")

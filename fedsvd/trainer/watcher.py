"""A thread that ends the trainer when its executor is gone, or nobody waits for the reply that it works on."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_INTERVAL_S = 0.5


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, distinguished by its start from later ones with the same ID.

    Attributes:
        pid: Process ID.
        started: Time of its start, in clock ticks since the boot; empty where the system does not tell.
    """

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Return the identity of a process."""
        return cls(pid, _start_time(pid) or "")

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """Read what ``str`` has written."""
        pid, _, started = text.partition(":")
        return cls(int(pid), started)

    def __str__(self) -> str:
        return f"{self.pid}:{self.started}"

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return _start_time(self.pid) == self.started


def pid_namespace() -> str | None:
    """Return the namespace of process IDs that this process sees; None where the system has none."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


class Watcher:
    """Ends this process as SIGKILL would, from a thread of its own.

    Args:
        executor: The process that this one must not outlive.
    """

    def __init__(self, executor: ProcessIdentity) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        threading.Thread(target=self._run, name="watcher", daemon=True).start()

    def watch(self, connection: socket.socket | None) -> None:
        """End this process also if the other side closes this connection; None: no longer."""
        with self._lock:
            self._connection = connection

    def _run(self) -> None:
        while True:
            with self._lock:
                connection = self._connection
            if connection is None:
                time.sleep(_INTERVAL_S)
            elif _is_hung_up(connection):
                with self._lock:
                    # Not if this message was answered in the meantime.
                    if self._connection is connection:
                        _end("nobody waits for the reply any longer")
            if not self._executor.is_alive:
                _end(f"the executor (process {self._executor.pid}) has ended")


def _is_hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    try:
        # Reports only hang-ups and errors.
        poll.register(connection, 0)
    except (OSError, ValueError):
        time.sleep(_INTERVAL_S)
        return False
    return bool(poll.poll(_INTERVAL_S * 1000))


def _end(reason: str) -> None:
    print(f"the trainer ends: {reason}", file=sys.stderr, flush=True)
    os._exit(0)


def _start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks since the boot; None if it has ended."""
    try:
        # The name of the command, in parentheses, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists() or not _exists(pid):
            return None
        return ""
    # A zombie has ended.
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

"""The Unix sockets of trainers: private to the user, one for each node."""

from __future__ import annotations

import os
import socket
import stat
import sys
import tempfile
from pathlib import Path

from fedsvd.errors import TrainerError

# The size of `sun_path` without the terminating zero.
MAX_LENGTH = 103 if sys.platform == "darwin" else 107
_BACKLOG = 64


def node_socket(node_id: int) -> Path:
    """Return the path of the socket of a node's trainer, in a directory that is created if it does not exist.

    Its name is the node's ID as Flower's commands print it.

    Raises:
        TrainerError: If the directory cannot be created, belongs to another user or is open to others.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(runtime) if Path(runtime).is_absolute() and Path(runtime).is_dir() else Path(tempfile.gettempdir())
    folder = base / f"fedsvd-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise TrainerError(
            f"{folder} cannot be created ({error.strerror}): set XDG_RUNTIME_DIR or TMPDIR to a directory of this user."
        ) from error
    _check_private(folder, stat.S_IFDIR, "directory")
    path = folder / f"{node_id}.sock"
    check_length(path, "set XDG_RUNTIME_DIR or TMPDIR to a directory with a shorter path")
    return path


def check_length(path: Path, remedy: str) -> None:
    """Check that a path is short enough for a socket.

    Raises:
        TrainerError: If it is not.
    """
    length = len(os.fsencode(path))
    if length > MAX_LENGTH:
        raise TrainerError(f"{path} has {length} bytes: the path of a socket has at most {MAX_LENGTH}; {remedy}.")


def listen(path: Path) -> socket.socket:
    """Return a listening socket at a path that only this user can connect to; it replaces one without a listener."""
    temporary = path.with_name(f".{os.getpid():x}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        # Nobody can connect before `listen`, and nobody else after `chmod`.
        temporary.chmod(0o600)
        listener.listen(_BACKLOG)
        temporary.rename(path)
    except BaseException:
        listener.close()
        temporary.unlink(missing_ok=True)
        raise
    return listener


def connect(path: Path) -> socket.socket | None:
    """Connect to a trainer; return None if none listens.

    Raises:
        TrainerError: If the socket belongs to another user or is open to others.
    """
    if not path.exists():
        return None
    _check_private(path, stat.S_IFSOCK, "socket")
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        connected.close()
        return None
    except OSError as error:
        connected.close()
        raise TrainerError(f"{path} refuses connections ({error.strerror}).") from error
    return connected


def _check_private(path: Path, file_type: int, kind: str) -> None:
    status = path.lstat()
    if stat.S_IFMT(status.st_mode) != file_type:
        raise TrainerError(f"{path} is not a {kind}: remove it.")
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise TrainerError(
            f"{path} belongs to user {status.st_uid} and has mode {stat.S_IMODE(status.st_mode):o}: expected a {kind} "
            f"of user {os.geteuid()} that nobody else can use. Remove it, or use another one."
        )

"""Errors of the disk that a run writes to, as one line that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fedsvd.errors import RunError

# What a user can mend: space, quota, file size, permissions, and a file or directory in the way.
_MENDABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG, errno.EIO,
)  # fmt: skip


@contextmanager
def storage_errors(folder: Path, advice: str = "") -> Iterator[None]:
    """Convert errors of writing files in the context; other errors, such as those of a connection, are not changed.

    Args:
        folder: The directory that is written to, for errors that name no file.
        advice: What to do after the disk is mended.

    Raises:
        RunError: A file cannot be written.
    """
    try:
        yield
    except SafetensorError as error:
        raise storage_error(error, folder, advice) from error
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        raise storage_error(error, folder, advice) from error


def storage_error(error: OSError | SafetensorError, folder: Path, advice: str = "") -> RunError:
    """Return the error for a file that cannot be written; see `storage_errors`."""
    path = getattr(error, "filename", None) or folder
    reason = getattr(error, "strerror", None) or str(error)
    remedy = f"free disk space, or choose a directory that can be written{', then ' + advice if advice else ''}"
    return RunError(f"{path} cannot be written ({reason}): {remedy}")

"""Personal factors: trained by a client, never sent, and stored in a file for the later processes of the run."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Collection
from pathlib import Path

from safetensors.torch import load_file, save_file

from client.identity import ClientIdentity
from fedsvd.errors import PayloadError, RunError
from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.runs.folder import replaced
from fedsvd.wire.train_messages import TrainTask

logger = logging.getLogger(__name__)

# What the server calls a run: hexadecimal digits, which are safe in a path.
_ACCOUNT = re.compile("[0-9a-f]{16,64}")


def personal_path(identity: ClientIdentity, account: str) -> Path:
    """Return the file of a client's personal factors in one run.

    A simulated client keeps them in the run directory. That of a run on real nodes is on the server, so a node keeps
    them beside its ledger, which must be on a disk that is kept.

    Args:
        identity: The client's identity and private files.
        account: The run's name, the same for all of its processes.

    Raises:
        PayloadError: The server gives the run no valid name.
    """
    if identity.personal is not None:
        return identity.personal
    if not _ACCOUNT.fullmatch(account):
        raise PayloadError(
            f"train message has the account {account[:64]!r}: a method with personal factors requires 16 to 64 "
            "hexadecimal digits; check that server and clients run the same version of fedsvd."
        )
    return identity.ledger.parent / "personal" / account / f"{identity.partition_id}.safetensors"


def check_writable(path: Path, identity: ClientIdentity) -> None:
    """Check that personal factors can be stored, before anything is spent on training them.

    Raises:
        RunError: The directory cannot be created or written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _told(
            f"this client cannot keep its personal factors in {path.parent} ({error.strerror or error}): set ledger in "
            "its node configuration to a file in a directory that is kept and can be written. The factors are stored "
            "beside it.",
            path,
            identity,
        ) from error


def save_personal_factors(path: Path, adapter: Adapter, factors: Collection[Factor]) -> None:
    """Write personal factors to a file, atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{part}/{name}": t.detach().cpu().contiguous() for part in factors for name, t in adapter.part(part).items()
    }
    with replaced(path) as temporary:
        save_file(tensors, temporary)


def with_personal_factors(
    identity: ClientIdentity, task: TrainTask, adapter: Adapter, factors: Collection[Factor]
) -> Adapter:
    """Return an adapter with this client's personal factors, if it has trained any in this run.

    Args:
        identity: The client's identity and private files.
        task: The round's task, which says whether the client has replied in an earlier round.
        adapter: The adapter, with initial values in place of the personal factors.
        factors: The factors that the method lets clients keep; may be empty.

    Raises:
        RunError: The file belongs to another model or rank, or is missing although the client has replied before.
        PayloadError: See `personal_path`.
    """
    if not factors:
        return adapter
    path = personal_path(identity, task.account)
    if not path.exists():
        last = max(task.versions[part] for part in factors)
        if not last:
            return adapter
        raise _told(
            f"the personal factors of client {identity.partition_id} are missing ({path}): it trained them until "
            f"round {last} of this run, and initial ones would waste what was spent. Restore the file from a "
            "backup, or start a new run.",
            path,
            identity,
        )
    stored = {key: tensor.to(adapter.device) for key, tensor in load_file(path).items()}
    parts = {}
    for part in factors:
        expected = adapter.part(part)
        tensors = {name: stored[f"{part}/{name}"] for name in expected if f"{part}/{name}" in stored}
        if any(name not in tensors or tensors[name].shape != tensor.shape for name, tensor in expected.items()):
            raise _told(
                f"the stored personal factors of client {identity.partition_id} ({path}) are of another model or rank: "
                "restore those of this run from a backup, or start a new run.",
                path,
                identity,
            )
        parts[part] = tensors
    return adapter.with_parts({part: parts[part] for part in factors})


def _told(message: str, path: Path, identity: ClientIdentity) -> RunError:
    """Write an error to the client's log; return it without paths, unless the node's owner allows them."""
    logger.error("%s", message)
    if identity.limits.share_errors:
        return RunError(message)
    return RunError(message.replace(str(path), "see its log for the path").replace(str(path.parent), "their directory"))

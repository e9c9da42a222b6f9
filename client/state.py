"""Who this client is, and where it keeps what must outlive the process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context

from fedsvd.config import Config
from fedsvd.run_folder import RunFolder, run_root


@dataclass(frozen=True)
class ClientIdentity:
    """One client's number, run and private files.

    Attributes:
        partition_id: From 0 to the number of clients less one.
        run_id: Flower's number of the run.
        ledger: SQLite file with every spend of this client's data.
    """

    partition_id: int
    run_id: int
    ledger: Path


def client_identity(context: Context, config: Config) -> ClientIdentity:
    """Read the node's identity; a ``ledger`` in the node's own configuration wins over the run folder."""
    partition_id = int(context.node_config["partition-id"])
    given = context.node_config.get("ledger")
    folder = RunFolder(run_root(config.run_dir, context.run_id))
    return ClientIdentity(partition_id, context.run_id, Path(str(given)) if given else folder.ledger(partition_id))

"""Who this client is, and where it keeps what must outlive the process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Context

from client.node_limits import NodeLimits, read_limits
from fedsvd.config import Config
from fedsvd.runs.folder import RunFolder, ledger_path, run_root


@dataclass(frozen=True)
class ClientIdentity:
    """One client's number, run, private files and limits.

    Attributes:
        partition_id: From 0 to the number of clients less one.
        run_id: Flower's number of the run.
        ledger: SQLite file with every spend of this client's data.
        limits: What this client allows any run.
        personal: File of the factors that never leave this client, with methods that have such.
    """

    partition_id: int
    run_id: int
    ledger: Path
    limits: NodeLimits = field(default_factory=NodeLimits)
    personal: Path = Path("personal.safetensors")


def read_partition_id(context: Context) -> int:
    """Read which partition this node holds."""
    return int(context.node_config["partition-id"])


def client_identity(context: Context, config: Config) -> ClientIdentity:
    """Read the node's identity and limits; a ``ledger`` in the node's own configuration wins over the run's.

    Raises:
        LimitError: Limits that are not understood.
    """
    partition_id = read_partition_id(context)
    given = context.node_config.get("ledger")
    root = run_root(config.run_dir, context.run_id)
    default = ledger_path(config.privacy.ledger_dir, root, partition_id)
    limits = read_limits(context.node_config)
    personal = RunFolder(root).personal(partition_id)
    return ClientIdentity(partition_id, context.run_id, Path(str(given)) if given else default, limits, personal)

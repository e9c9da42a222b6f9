"""A client's identity, its limits, and the paths of its private files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Context

from client.node_limits import NodeLimits, has_strict_ledger, read_limits
from fedsvd.config import Config
from fedsvd.errors import LimitError
from fedsvd.runs.folder import RunFolder, ledger_path, run_root


@dataclass(frozen=True)
class ClientIdentity:
    """A client's number, run, private files and limits.

    Attributes:
        partition_id: Number of the client, from 0 to the number of clients minus 1.
        run_id: Flower's run ID.
        ledger: SQLite file that records all privacy spent on this client's data.
        limits: What this client allows any run to do.
        personal: File with the personal factors of a simulated client, which never leave it; used by methods that have
            them. None on a node, see `client.personal_factors.personal_path`.
        strict_ledger: Whether the ledger refuses data that have changed; by default, all earlier charges count against
            them.
    """

    partition_id: int
    run_id: int
    ledger: Path
    limits: NodeLimits = field(default_factory=NodeLimits)
    personal: Path | None = None
    strict_ledger: bool = False


def read_partition_id(node_config: Mapping[str, object]) -> int:
    """Return the number of this node's partition.

    Raises:
        LimitError: If the node configuration has none, or it is not an integer from 0.
    """
    value = node_config.get("partition-id")
    if type(value) is not int or value < 0:
        found = "has no partition-id" if value is None else f"has the invalid partition-id = {value!r}"
        raise LimitError(
            f"node configuration {found}: expected an integer from 0 to the number of clients minus 1, as in "
            "partition-id=0."
        )
    return value


def client_identity(context: Context, config: Config) -> ClientIdentity:
    """Read the node's identity and limits; ``ledger`` in the node configuration overrides the run's ledger path.

    Personal factors are stored beside that ledger, too.

    Raises:
        LimitError: If the node configuration has an invalid partition, limit or ledger policy.
    """
    partition_id = read_partition_id(context.node_config)
    ledger = context.node_config.get("ledger")
    root = run_root(config.run_dir, context.run_id)
    default_ledger = ledger_path(config.privacy.ledger_dir, root, partition_id)
    limits = read_limits(context.node_config)
    personal = None if ledger else RunFolder(root).personal(partition_id)
    path = Path(str(ledger)) if ledger else default_ledger
    return ClientIdentity(partition_id, context.run_id, path, limits, personal, has_strict_ledger(context.node_config))

"""A check of a node's configuration and data, for its owner to run before the node joins."""

from __future__ import annotations

from flwr.common.config import parse_config_args

from client.node_data import with_node_data
from client.node_limits import read_limits
from fedsvd.config import Config
from fedsvd.data.node_data import count_labels
from fedsvd.errors import DataError
from fedsvd.runtime.data import load_partition


def check_node(node_config: str, config: Config) -> list[str]:
    """Check a node's configuration and data against a run.

    Args:
        node_config: The node configuration, in the format of ``flower-supernode --node-config``.
        config: The run's configuration.

    Returns:
        One line each on the node's identity, data and limits. They are for the node's owner only.

    Raises:
        LimitError: If a limit is invalid, or the run exceeds one.
        DataError: If the node configuration cannot be parsed, or the data cannot be read or does not fit the run.
    """
    try:
        parsed = parse_config_args([node_config], flatten=False)
        partition_id = int(parsed["partition-id"])
    except (ValueError, KeyError, SystemExit, TypeError) as error:
        raise DataError(
            f"node configuration {node_config!r} is invalid or has no partition-id ({error}): expected KEY=VALUE pairs "
            "separated by spaces, with strings in double quotes, as in 'partition-id=0 data-path=\"/data/a.csv\"'."
        ) from error
    limits = read_limits(parsed)
    limits.check(config)
    counts = count_labels(load_partition(with_node_data(config, parsed), partition_id))
    set_limits = {key: value for key, value in vars(limits).items() if value is not None}
    allowed = ", ".join(f"{key.replace('_', '-')} = {value}" for key, value in set_limits.items())
    return [
        f"client {partition_id}; ledger: {parsed.get('ledger', 'one per run directory, not summed over runs')}",
        f"label counts: {', '.join(f'{name} = {count}' for name, count in counts.items())}",
        f"limits: {allowed or 'none'}",
    ]

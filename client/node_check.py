"""A node's configuration and data, looked over by its owner before it joins."""

from __future__ import annotations

from flwr.common.config import parse_config_args

from client.node_data import with_node_data
from client.node_limits import read_limits
from fedsvd.config import Config
from fedsvd.data.node_data import count_labels
from fedsvd.errors import DataError
from fedsvd.runtime.data import load_partition


def check_node(node_config: str, config: Config) -> list[str]:
    """Hold a node's configuration and its data against a run.

    Args:
        node_config: As ``flower-supernode --node-config`` takes it.
        config: The run's configuration.

    Returns:
        What this node is, holds and allows, a line each; for its owner's eyes.

    Raises:
        LimitError: Limits that are not understood, or that the run exceeds.
        DataError: Data that cannot be used, or are not what the run is about.
    """
    try:
        given = parse_config_args([node_config], flatten=False)
        partition_id = int(given["partition-id"])
    except (ValueError, KeyError, SystemExit, TypeError) as error:
        raise DataError(
            f"the node's configuration {node_config!r} is not understood, or has no partition-id ({error}): write "
            "KEY=VALUE with blanks between, texts in double quotes, as in 'partition-id=0 data-path=\"/data/a.csv\"'."
        ) from error
    limits = read_limits(given)
    limits.check(config)
    counts = count_labels(load_partition(with_node_data(config, given), partition_id))
    told = {key: value for key, value in vars(limits).items() if value is not None}
    allowed = ", ".join(f"{key.replace('_', '-')} = {value}" for key, value in told.items())
    return [
        f"client {partition_id}; ledger {given.get('ledger', 'in the folder of each run, so that runs do not add up')}",
        f"holds {', '.join(f'{count} of {name}' for name, count in counts.items())}",
        f"allows {allowed or 'anything: no limit is set'}",
    ]

"""A check of a node's configuration and data, for its owner to run before the node joins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from client.fixed_settings import FIXED_KEYS, unfixed_settings
from client.identity import read_partition_id
from client.node_data import with_node_data
from client.node_limits import has_strict_ledger, read_limits
from fedsvd.compat.flower import parse_node_config
from fedsvd.config import Config
from fedsvd.data.node_data import describe_rows
from fedsvd.errors import DataError
from fedsvd.privacy.ledger import Ledger
from fedsvd.runtime.data import load_fingerprint, load_partition
from fedsvd.runtime.run_checks import check_run
from fedsvd.trainer.settings import TrainerSettings, read_settings
from fedsvd.trainer.sockets import check_length, connect, node_socket


def check_node(node_config: str, config: Config) -> list[str]:
    """Check a node's configuration and data against a run.

    Args:
        node_config: The node configuration, in the format of ``flower-supernode --node-config``.
        config: The run's configuration.

    Returns:
        One line each on the node's identity, data, limits and trainer, and on own data that runs can ask about. They
        are for the node's owner only.

    Raises:
        LimitError: If the partition, a limit, the ledger's policy or a setting of the trainer is invalid, or the run
            exceeds a limit.
        ConfigError: If the method does not support the run's settings.
        TrainerError: If the socket of the trainer cannot be used.
        LedgerError: If the ledger is damaged, or may not be charged for this data.
        DataError: If the node configuration cannot be parsed, or the data cannot be read or does not fit the run.
    """
    try:
        parsed = parse_node_config(node_config)
    except ValueError as error:
        raise DataError(
            f"node configuration {node_config!r} is invalid ({error}): expected KEY=VALUE pairs separated by spaces, "
            "with strings in double quotes, as in 'partition-id=0 data-path=\"/data/a.csv\"'."
        ) from error
    partition_id = read_partition_id(parsed)
    limits = read_limits(parsed)
    limits.check(config)
    check_run(config)
    strict = has_strict_ledger(parsed)
    trainer = _describe_trainer(read_settings(parsed))
    own = with_node_data(config, parsed)
    data, fingerprint = load_partition(own, partition_id), load_fingerprint(own, partition_id)
    set_limits = {key: value for key, value in vars(limits).items() if value is not None}
    allowed = ", ".join(f"{key.replace('_', '-')} = {value}" for key, value in set_limits.items())
    return [
        f"client {partition_id}; ledger: {_describe_ledger(parsed.get('ledger'), fingerprint, strict)}",
        describe_rows(data),
        f"limits: {allowed or 'none'}",
        f"trainer: {trainer}",
        *_advise(parsed, own),
    ]


def _advise(node_config: Mapping[str, object], own: Config) -> list[str]:
    if "data-path" not in node_config or any(key in node_config for key in FIXED_KEYS):
        return []
    return [
        "whoever submits a run can ask whether single rows have other labels or numbers than it allows, and which "
        "columns the file has; to fix what runs may ask, add to the node configuration: "
        + unfixed_settings(own, node_config)
    ]


def _describe_trainer(settings: TrainerSettings) -> str:
    if not settings.enabled:
        return "none; each message loads model and data"
    ends = f"ends after {settings.idle_s:g} s without a message"
    if settings.socket is None:
        # Checks the directory of the sockets; a node has its ID from the server.
        node_socket(0)
        return f"started by the first message of a run; {ends}"
    check_length(settings.socket, "choose a shorter path")
    connected = connect(settings.socket)
    if connected is None:
        return f"{settings.socket}, where none listens now: start it with fedsvd trainer socket={settings.socket}"
    connected.close()
    return f"listens on {settings.socket}; {ends}"


def _describe_ledger(ledger: object, data_fingerprint: str, strict: bool) -> str:
    if not ledger:
        return "one per run directory, not summed over runs"
    path = Path(str(ledger))
    if not path.exists():
        return str(path)
    with Ledger.read(path) as opened:
        has_changed = opened.check_data(data_fingerprint, strict=strict)
        counting = len(opened.state().counting)
    if not (has_changed and counting):
        return f"{path}, {counting} charges count against this data"
    return (
        f"{path}; the data changed since the last charge, and {counting} earlier charges count against them, too. If "
        f'no person is in both, start a new account: fedsvd privacy ledger {path} --new-account "reason"'
    )

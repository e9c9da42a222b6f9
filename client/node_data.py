"""A node's own data: reading its node configuration, and combining it with the run's configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

from flwr.app import Context

from client.fixed_settings import FIXED_KEYS, check_fixed_settings, columns_read
from fedsvd.config import Config, own_text_problem
from fedsvd.errors import (
    BudgetExceededError,
    ConfigError,
    DataError,
    DivergedError,
    FedSVDError,
    LedgerError,
    LimitError,
    NodeDataError,
    PayloadError,
    PrivacyError,
    PublicTextError,
    ReplayedMessageError,
    RunError,
    RunMismatchError,
    StaleCacheError,
)
from fedsvd.trainer.settings import shares_errors

logger = logging.getLogger(__name__)

_COLUMN_KEYS = ("text-column", "text-pair-column", "label-column", "response-column", "messages-column")
_FILE_KEYS = ("data-path", "test-path", "separator", "label-separator", *_COLUMN_KEYS)
NODE_DATA_KEYS = (*_FILE_KEYS, *FIXED_KEYS)

# Errors whose messages quote settings, limits, budgets and messages, and never data. A subclass counts only if it is
# listed itself: any other error, also of a library, may quote what the node has read.
FREE_OF_DATA = (
    ConfigError,
    RunMismatchError,
    PrivacyError,
    BudgetExceededError,
    LimitError,
    LedgerError,
    ReplayedMessageError,
    PayloadError,
    StaleCacheError,
    RunError,
    DivergedError,
)


@dataclass(frozen=True)
class NodeData:
    """A node's own data files. The keys of the node configuration are the same, with dashes; ``data-path`` is required.

    What else the owner can fix is in `client.fixed_settings`.

    Attributes:
        data_path: File with the training texts; csv, jsonl or parquet, by its suffix.
        test_path: Held-out file for methods with personalized models, whose metrics are sent without noise; None for no
            evaluation.
        separator: Separator of the columns of ``.csv`` files: one character, or ``tab``; None for the run's.
        label_separator: Separator of the classes in one text of several classes; None for the run's.
        text_column: Column of the text; None for the run's.
        text_pair_column: Column of the second text of a pair; None for the run's.
        label_column: Column of the label; None for the run's.
        response_column: Column of the answers of a language model; None for the run's.
        messages_column: Column of conversations; None for the run's.
    """

    data_path: str
    test_path: str | None = None
    separator: str | None = None
    label_separator: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    response_column: str | None = None
    messages_column: str | None = None


def read_node_data(node_config: Mapping[str, object]) -> NodeData | None:
    """Read the node configuration's keys on own data; return None if there are none.

    Raises:
        NodeDataError: If a value is not a string, or ``data-path`` is missing.
    """
    values = {key: node_config[key] for key in NODE_DATA_KEYS if key in node_config}
    for key, value in values.items():
        if not isinstance(value, str) or not value:
            raise NodeDataError(
                f'node configuration: {key} = {value!r} is invalid: expected a quoted string, as in {key}="…".'
            )
    separator = values.get("separator", "tab")
    if len(str(separator)) != 1 and separator not in ("tab", "\\t"):
        raise NodeDataError(
            f"node configuration: separator = {separator!r} is invalid: expected one character, or tab."
        )
    if values and "data-path" not in values:
        raise NodeDataError(
            f"node configuration has {', '.join(values)} but no data-path: set data-path to the node's file."
        )
    files = {key.replace("-", "_"): str(value) for key, value in values.items() if key in _FILE_KEYS}
    return NodeData(**files) if files else None


def with_node_data(config: Config, node_config: Mapping[str, object]) -> Config:
    """Return the run's configuration as this node sees it: with the node's own data files, if it has any.

    The run's ``data.test_path`` is a file on the server and is replaced.

    Raises:
        RunMismatchError: If the node has its own data but the run does not use it, or vice versa, if the run does not
            read a column that the node names, if ``num-partitions`` in the node configuration is not the run's number
            of clients, or if the run would read the data by other settings than the node's owner has fixed.
        NodeDataError: If the node configuration is invalid, or does not fit the run.
        PublicTextError: If the run takes a file of this node for public text.
    """
    node_data, run_data = read_node_data(node_config), config.data.name
    if node_data is None and run_data == "node":
        raise RunMismatchError(
            'data = node, but this node has no data of its own: set data-path="…" in its node configuration.'
        )
    if node_data is None:
        partitions = node_config.get("num-partitions")
        if partitions is not None and partitions != config.federation.num_clients:
            raise RunMismatchError(
                f"federation.num_clients = {config.federation.num_clients}, but this node has one of {partitions} "
                f"partitions (num-partitions): set federation.num_clients={partitions}."
            )
        return config
    if run_data != "node":
        raise RunMismatchError(
            f"data = {run_data}, but this node trains only on its own data: set data=node and data.labels."
        )
    check_fixed_settings(config, node_config)
    _check_columns(node_data, config)
    names = {field.name: getattr(node_data, field.name) for field in fields(node_data) if field.name != "data_path"}
    own = {key: name for key, name in names.items() if name is not None} | {"test_path": node_data.test_path}
    if problem := own_text_problem(config, node_data.data_path, node_data.test_path):
        raise PublicTextError(problem)
    try:
        return replace(config, data=replace(config.data, path=node_data.data_path, **own))
    except ConfigError as error:
        # The run is valid by itself, so the error is about this node's names, and may quote them.
        raise NodeDataError(f"node configuration: {error}") from error


def _check_columns(node_data: NodeData, config: Config) -> None:
    """Refuse a name for a column that the run does not read; the message does not contain the name."""
    read = columns_read(config.data)
    for key in _COLUMN_KEYS:
        setting = key.replace("-", "_")
        if getattr(node_data, setting) is not None and key not in read:
            raise RunMismatchError(
                f"this node's configuration has {key}, but the run reads no such column: remove {key} from it, or "
                f"set data.{setting} in the run."
            )


def check_node_data(config: Config) -> None:
    """Load a node's own data before a run, and log its number of rows by class.

    A file of public text is loaded first: what a run learns about it must not depend on whether it is the node's own.

    Raises:
        NodeDataError: If the data does not fit the run.
        PublicTextError: If the file of public text cannot be used.
    """
    if config.data.name == "node":
        # Without data of its own a node answers this query without loading torch, transformers or datasets.
        from fedsvd.data.node_data import describe_rows
        from fedsvd.data.public_text import EMBEDDED, load_public_text
        from fedsvd.report.literal import visible
        from fedsvd.runtime.data import load_partition

        if config.public_text_uses and config.model.public_text != EMBEDDED:
            load_public_text(config.model.public_text)
        logger.info("own data: %s", visible(describe_rows(load_partition(config, 0))))


@contextmanager
def hide_private_details(context: Context) -> Iterator[None]:
    """Log errors that may quote the node's own data on the node, and replace them by errors without details.

    On a node with its own data, these are all errors except those of the classes in `FREE_OF_DATA`. The server receives
    only the replacement; it has the details if the node's owner allows it (``share-errors``).

    Raises:
        DataError: Instead of a `NodeDataError` or, on a node with its own data, of any error that is not known to be
            free of data.
    """
    try:
        yield
    except NodeDataError as error:
        raise _without_details(error, context) from None
    except Exception as error:
        if "data-path" not in context.node_config or type(error) in FREE_OF_DATA:
            raise
        raise _without_details(error, context) from None


def _without_details(error: Exception, context: Context) -> DataError:
    """Write an error to the node's log; return what the server may read of it."""
    from fedsvd.report.literal import visible

    problem, missing = f"{type(error).__name__} on this node", "details"
    if isinstance(error, PublicTextError):
        # The run names the file: what is wrong with it could tell about any file of this node.
        problem, missing = "model.public_text cannot be used on this node", "reason"
    elif isinstance(error, NodeDataError) or type(error) is DataError:
        problem, missing = "this node's own data cannot be used", "reason"
    # The error may quote the data, which may contain control characters of a terminal.
    text, is_expected = visible(error, keep="\n"), isinstance(error, FedSVDError)
    logger.error("%s: %s", problem, text, exc_info=None if is_expected else error)
    details = str(error) if shares_errors(context.node_config) else f"see the node's log for the {missing}."
    return DataError(f"{problem}: {details}")

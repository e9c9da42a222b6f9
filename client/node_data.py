"""A node's own data: reading its node configuration, and combining it with the run's configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

from flwr.app import Context

from client.fixed_settings import FIXED_KEYS, check_fixed_settings, columns_read
from fedsvd.config import Config, own_text_problem
from fedsvd.errors import ConfigError, DataError, FedSVDError, NodeDataError, PublicTextError
from fedsvd.trainer.settings import shares_errors

logger = logging.getLogger(__name__)

_COLUMN_KEYS = ("text-column", "text-pair-column", "label-column", "response-column", "messages-column")
_FILE_KEYS = ("data-path", "test-path", "separator", "label-separator", *_COLUMN_KEYS)
NODE_DATA_KEYS = (*_FILE_KEYS, *FIXED_KEYS)


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
        DataError: If the node has its own data but the run does not use it, or vice versa, if ``num-partitions`` in
            the node configuration is not the run's number of clients, or if the run would read the data by other
            settings than the node's owner has fixed.
        NodeDataError: If the node configuration is invalid, or does not fit the run.
        PublicTextError: If the run takes a file of this node for public text.
    """
    node_data, run_data = read_node_data(node_config), config.data.name
    if node_data is None and run_data == "node":
        raise DataError(
            'data = node, but this node has no data of its own: set data-path="…" in its node configuration.'
        )
    if node_data is None:
        partitions = node_config.get("num-partitions")
        if partitions is not None and partitions != config.federation.num_clients:
            raise DataError(
                f"federation.num_clients = {config.federation.num_clients}, but this node has one of {partitions} "
                f"partitions (num-partitions): set federation.num_clients={partitions}."
            )
        return config
    if run_data != "node":
        raise DataError(f"data = {run_data}, but this node trains only on its own data: set data=node and data.labels.")
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
            raise DataError(
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

    The server receives only the replacement; it has the details if the node's owner allows it (``share-errors``).

    Raises:
        DataError: Instead of a `NodeDataError`, an unexpected error or, on a node with its own data, a
            `PublicTextError`, all of which may tell about its files.
    """
    shares = shares_errors(context.node_config)
    try:
        yield
    except (NodeDataError, PublicTextError) as error:
        problem = "this node's own data cannot be used"
        if isinstance(error, PublicTextError):
            if "data-path" not in context.node_config:
                raise
            # The run names the file: what is wrong with it could tell about any file of this node.
            problem = "model.public_text cannot be used on this node"
        from fedsvd.report.literal import visible

        # The error may quote the data, which may contain control characters of a terminal.
        logger.error("%s: %s", problem, visible(error, keep="\n"))
        reason = str(error) if shares else "see the node's log for the reason."
        raise DataError(f"{problem}: {reason}") from None
    except FedSVDError:
        raise
    except Exception as error:
        if "data-path" not in context.node_config:
            raise
        logger.exception("unexpected error while using this node's own data")
        details = str(error) if shares else "see the node's log for the details."
        raise DataError(f"{type(error).__name__} on this node: {details}") from None

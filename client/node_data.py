"""The data that a node brings: what its configuration says of them, and the run as this node sees it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from flwr.app import Context

from fedsvd.config import Config
from fedsvd.data.node_data import count_labels
from fedsvd.errors import DataError, FedSVDError, NodeDataError
from fedsvd.runtime.data import load_partition

logger = logging.getLogger(__name__)

NODE_DATA_KEYS = ("data-path", "test-path", "text-column", "text-pair-column", "label-column")


@dataclass(frozen=True)
class NodeData:
    """A node's own file. In the node's configuration: with dashes; only ``data-path`` must be there.

    Attributes:
        data_path: What is trained on, all of it; its ending tells its format: csv, jsonl or parquet.
        test_path: Held-out texts for methods that measure each node's own model; None: it measures nothing.
        text_column: Column of the text; None: as the run has it.
        text_pair_column: Column of the second text of a pair; None: as the run has it.
        label_column: Column of the class; None: as the run has it.
    """

    data_path: str
    test_path: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None


def read_node_data(node_config: Mapping[str, object]) -> NodeData | None:
    """Read what a node's configuration says of its own data; None where it has none.

    Raises:
        SiloError: A value that is no text, or columns without a file.
    """
    given = {key: node_config[key] for key in NODE_DATA_KEYS if key in node_config}
    for key, value in given.items():
        if not isinstance(value, str) or not value:
            raise NodeDataError(f'{key} = {value!r} in the node\'s configuration; write a text, as in {key}="…".')
    if given and "data-path" not in given:
        raise NodeDataError(f"the node's configuration sets {', '.join(given)} but no data-path; set the file's path.")
    return NodeData(**{key.replace("-", "_"): str(value) for key, value in given.items()}) if given else None


def with_node_data(config: Config, node_config: Mapping[str, object]) -> Config:
    """Return the run's configuration with this node's own file in it, where it has one.

    The run's ``data.test_path`` is a file of the server's and is left out.

    Raises:
        DataError: A run on other data than this node's own, or on nodes' own data where this node has none, or one
            that deals its data out to another number of nodes than this one was told.
        SiloError: A configuration of the node that is not understood.
    """
    own, asked = read_node_data(node_config), config.data.name
    if own is None and asked == "node":
        raise DataError('data = node, but this node brings no data; its configuration needs data-path="…".')
    if own is None:
        told = node_config.get("num-partitions")
        if told is not None and told != config.federation.num_clients:
            raise DataError(
                f"federation.num_clients = {config.federation.num_clients}, but this node holds one of {told} "
                f"partitions (num-partitions): set federation.num_clients={told}."
            )
        return config
    if asked != "node":
        raise DataError(f"data = {asked}, but this node trains on its own data alone: set data=node and data.labels.")
    data = replace(
        config.data,
        path=own.data_path,
        test_path=own.test_path,
        text_column=own.text_column or config.data.text_column,
        text_pair_column=own.text_pair_column or config.data.text_pair_column,
        label_column=own.label_column or config.data.label_column,
    )
    return replace(config, data=data)


def check_node_data(config: Config) -> None:
    """Load a node's own data once before a run, and tell its log what there is.

    Raises:
        SiloError: They do not fit the run.
    """
    if config.data.name == "node":
        counts = count_labels(load_partition(config, 0))
        logger.info("own data: %s", ", ".join(f"{count} of {name}" for name, count in counts.items()))


@contextmanager
def hide_private_details(context: Context) -> Iterator[None]:
    """Keep what an error says of a node's own data in the node's own log; the server learns that there was one.

    Raises:
        DataError: In the place of an error that may quote the data: a `NodeDataError`, or one that nobody foresaw.
    """
    try:
        yield
    except NodeDataError as error:
        logger.error("this node's own data cannot be used: %s", error)
        raise DataError("this node's own data cannot be used; its own log says why.") from None
    except FedSVDError:
        raise
    except Exception as error:
        if "data-path" not in context.node_config:
            raise
        logger.exception("an error that was not foreseen, with this node's own data")
        raise DataError(f"{type(error).__name__} on this node; its own log has the details.") from None

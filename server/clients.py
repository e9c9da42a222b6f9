"""Who is there: nodes, and the partitions that they hold."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsvd import wire
from fedsvd.config import FederationConfig
from fedsvd.errors import RunError

logger = logging.getLogger(__name__)


def find_clients(grid: Grid, federation: FederationConfig) -> dict[int, int]:
    """Wait for the nodes, and ask each for its partition: node numbers are random, so clients are ordered by these.

    Returns:
        Partitions by node, one node for each.

    Raises:
        RunError: No node answers in time.
    """
    wanted = federation.num_clients
    deadline = time.monotonic() + federation.connect_timeout_s
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < wanted and time.monotonic() < deadline:
        time.sleep(0.2)
        nodes = sorted(grid.get_node_ids())
    queries = [Message(RecordDict(), node, wire.PARTITION_QUERY, group_id="0") for node in nodes]
    answers = grid.send_and_receive(queries, timeout=federation.round_timeout_s)
    partitions: dict[int, int] = {}
    for answer in answers:
        if answer.has_error():
            logger.warning("node %d did not say what it holds: %s", answer.metadata.src_node_id, answer.error.reason)
        else:
            partitions[answer.metadata.src_node_id] = int(
                answer.content.metric_records[wire.METRICS]["partition-id"]  # type: ignore[arg-type]
            )
    return _one_node_a_partition(partitions, wanted)


def _one_node_a_partition(partitions: Mapping[int, int], num_clients: int) -> dict[int, int]:
    chosen: dict[int, int] = {}
    for node in sorted(partitions):
        if partitions[node] < num_clients and partitions[node] not in chosen.values():
            chosen[node] = partitions[node]
    if not chosen:
        raise RunError(
            f"no node with a partition below {num_clients} answered ({len(partitions)} nodes in all); "
            "start the clients, or raise federation.connect_timeout_s."
        )
    if len(chosen) < num_clients:
        missing = sorted(set(range(num_clients)) - set(chosen.values()))
        logger.warning("%d of %d clients are there; missing partitions: %s", len(chosen), num_clients, missing)
    return chosen

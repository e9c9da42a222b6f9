"""Who is there: nodes, and the partitions that they hold."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsvd.config import FederationConfig
from fedsvd.errors import RunError
from fedsvd.wire import train_messages

logger = logging.getLogger(__name__)


class Clients:
    """The run's clients, by the nodes on which they live.

    Node numbers are random, so clients are known, and ordered, by their partitions. A node that was started anew may
    come back under another number: it takes the place of the one that is gone.

    Attributes:
        partitions: Partitions by node, one node for each.

    Args:
        federation: The run's.
    """

    def __init__(self, federation: FederationConfig) -> None:
        self._federation = federation
        self._tries: Counter[int] = Counter()
        self._answered: set[int] = set()
        self.partitions: dict[int, int] = {}

    @property
    def nodes(self) -> list[int]:
        """The nodes in the order of their partitions."""
        return sorted(self.partitions, key=self.partitions.__getitem__)

    def find(self, grid: Grid) -> None:
        """Wait for all clients the first time; later take in those that have come since.

        Raises:
            RunError: No node answers in time.
        """
        nodes = sorted(grid.get_node_ids())
        if not self.partitions:
            deadline = time.monotonic() + self._federation.connect_timeout_s
            while len(nodes) < self._federation.num_clients and time.monotonic() < deadline:
                time.sleep(0.2)
                nodes = sorted(grid.get_node_ids())
        new = self._to_ask(nodes)
        if new or not self.partitions:
            self._admit(nodes, new, grid)

    def _to_ask(self, nodes: list[int]) -> list[int]:
        """Return nodes that have not been asked; while a client is missing, those too that gave no answer (yet)."""
        complete = len(self.partitions) == self._federation.num_clients and self.partitions.keys() <= set(nodes)
        tries = 1 if complete else 1 + self._federation.retries
        return [node for node in nodes if node not in self._answered and self._tries[node] < tries]

    def _admit(self, nodes: list[int], new: list[int], grid: Grid) -> None:
        self._tries.update(new)
        queries = [Message(RecordDict(), node, train_messages.PARTITION_QUERY, group_id="0") for node in new]
        answers = grid.send_and_receive(queries, timeout=self._federation.connect_timeout_s)
        found = dict(sorted(_read(answers).items()))
        self._answered |= found.keys()
        wanted, first = self._federation.num_clients, not self.partitions
        for node, partition in found.items():
            holder = next((old for old, held in self.partitions.items() if held == partition), None)
            if partition is None:
                logger.warning("node %d names no partition; is it one of fedsvd's?", node)
                continue
            if partition >= wanted or (holder is not None and holder in nodes):
                logger.warning("node %d is left alone: its partition %d is not wanted, or taken", node, partition)
                continue
            if holder is not None:
                del self.partitions[holder]
            self.partitions[node] = partition
            if not first:
                logger.warning("client %d is back, on node %d", partition, node)
        if not self.partitions:
            raise RunError(
                f"no node with a partition below {wanted} answered ({len(nodes)} nodes in all); "
                "start the clients, or raise federation.connect_timeout_s."
            )
        missing = sorted(set(range(wanted)) - set(self.partitions.values()))
        if missing:
            logger.warning("%d of %d clients are there; missing partitions: %s", wanted - len(missing), wanted, missing)


def _read(answers: Iterable[Message]) -> dict[int, int | None]:
    """Return the partition that each node names; None where its answer names none."""
    partitions: dict[int, int | None] = {}
    for answer in answers:
        node = answer.metadata.src_node_id
        if answer.has_error():
            reason = train_messages.one_line(answer.error.reason or "no reason given")
            logger.warning("node %d did not say what it holds: %s", node, reason)
            continue
        record = answer.content.metric_records.get(train_messages.METRICS)
        partition = None if record is None else record.get("partition-id")
        partitions[node] = partition if type(partition) is int and partition >= 0 else None
    return partitions

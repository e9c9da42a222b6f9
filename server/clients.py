"""The connected nodes, and their partitions."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedsvd.config import FederationConfig
from fedsvd.errors import RunError
from fedsvd.runs.client_status import StatusBoard
from fedsvd.wire import train_messages
from fedsvd.wire.partition_query import partition_query
from server.outcome import list_reasons

logger = logging.getLogger(__name__)


class Clients:
    """The run's clients and their nodes.

    Node IDs are random, so clients are identified and ordered by their partitions. A restarted node may reconnect under
    another ID; it then replaces the disconnected node of the same partition.

    Attributes:
        partitions: Partition by node ID, with one node per partition.

    Args:
        federation: The run's settings.
        board: Is told what each client is doing.
        account: The account that each client charges with the whole run when it is queried; empty for none.
    """

    def __init__(self, federation: FederationConfig, board: StatusBoard | None = None, account: str = "") -> None:
        self._federation = federation
        self._account = account
        self._declined: dict[int, str] = {}
        self.board = board or StatusBoard(federation.num_clients)
        self._attempts: Counter[int] = Counter()
        self._answered: set[int] = set()
        self.partitions: dict[int, int] = {}

    @property
    def nodes(self) -> list[int]:
        """The nodes in the order of their partitions."""
        return sorted(self.partitions, key=self.partitions.__getitem__)

    @property
    def participants(self) -> list[int]:
        """Those of `nodes` whose clients take part in the run."""
        return [node for node in self.nodes if self._federation.takes_part(self.partitions[node])]

    @property
    def left_out(self) -> dict[int, str]:
        """Why clients cannot take part, in the words of their nodes, by their numbers."""
        present = set(self.partitions.values())
        declined = sorted(self._declined.items())
        return {n: reason for n, reason in declined if n < self._federation.num_clients and n not in present}

    def sample(self, seed: int, server_round: int) -> list[int]:
        """Draw the nodes of a round (1-based), in the order of their partitions; the same for the same seed."""
        nodes = self.participants
        size = self._federation.clients_per_round or len(nodes)
        if size >= len(nodes):
            return nodes
        # One random stream per round, so that a resumed run samples the same clients.
        chosen = random.Random(f"{seed}/{server_round}").sample(range(len(nodes)), size)
        return [nodes[i] for i in sorted(chosen)]

    def refresh(self, grid: Grid) -> None:
        """Wait for all clients on the first call; on later calls, add the clients that have connected since.

        Raises:
            RunError: If no node answers the query in time.
        """
        nodes = sorted(grid.get_node_ids())
        if not self.partitions:
            deadline = time.monotonic() + self._federation.connect_timeout_s
            while len(nodes) < self._federation.num_clients and time.monotonic() < deadline:
                time.sleep(0.2)
                nodes = sorted(grid.get_node_ids())
        new = self._nodes_to_query(nodes)
        if new or not self.partitions:
            self._query(nodes, new, grid)

    def _nodes_to_query(self, nodes: list[int]) -> list[int]:
        """Return the nodes that were not queried yet and, while a client is missing, those that have not answered."""
        complete = len(self.partitions) == self._federation.num_clients and self.partitions.keys() <= set(nodes)
        max_attempts = 1 if complete else 1 + self._federation.retries
        return [node for node in nodes if node not in self._answered and self._attempts[node] < max_attempts]

    def _query(self, nodes: list[int], new: list[int], grid: Grid) -> None:
        self._attempts.update(new)
        content, timeout = partition_query(self._account), self._federation.connect_timeout_s
        # A client that receives the query after the timeout must not charge itself for it.
        queries = [Message(content, node, train_messages.PARTITION_QUERY, ttl=timeout, group_id="0") for node in new]
        answers = grid.send_and_receive(queries, timeout=timeout)
        answered = dict(sorted(self._read_partitions(answers).items()))
        self._answered |= answered.keys()
        num_clients, first = self._federation.num_clients, not self.partitions
        for node, partition in answered.items():
            known = next((old for old, other in self.partitions.items() if other == partition), None)
            if partition is None:
                logger.warning("node %d is ignored: its reply has no partition number; check that it runs fedsvd", node)
                continue
            if partition >= num_clients or (known is not None and known in nodes):
                logger.warning("node %d is ignored: its partition %d is out of range or taken", node, partition)
                continue
            if known is not None:
                del self.partitions[known]
            self.partitions[node] = partition
            self.board.connected(partition)
            if not first:
                logger.warning("client %d connected on node %d", partition, node)
        if not self.partitions:
            raise RunError(self._no_client(len(nodes)))
        missing = sorted(set(range(num_clients)) - set(self.partitions.values()))
        if missing:
            found = num_clients - len(missing)
            logger.warning("%d of %d clients are connected; missing partitions: %s", found, num_clients, missing)

    def _no_client(self, num_nodes: int) -> str:
        if not self._declined:
            return (
                f"no node with a partition below {self._federation.num_clients} answered ({num_nodes} nodes "
                "connected): start the clients, or increase federation.connect_timeout_s."
            )
        reasons = list_reasons(dict(sorted(self._declined.items())))
        return f"no client can take part ({reasons}). Remove the cause, then start a new run."

    def request(self, nodes: Sequence[int], server_round: int) -> tuple[int, ...]:
        """Return the partitions of nodes that are about to be asked to train in a round."""
        partitions = tuple(self.partitions[node] for node in nodes)
        self.board.requested(partitions, server_round)
        return partitions

    def _read_partitions(self, answers: Iterable[Message]) -> dict[int, int | None]:
        """Return the partition in each node's answer; None if the answer has no valid partition."""
        partitions: dict[int, int | None] = {}
        for answer in answers:
            node = answer.metadata.src_node_id
            if answer.has_error():
                reason = train_messages.one_line(answer.error.reason or "no reason given")
                logger.warning("the partition query to node %d failed: %s", node, reason)
                continue
            partition, declined = _partition(answer), train_messages.declined_reason(answer.content)
            if declined is None:
                partitions[node] = partition
                continue
            if partition is not None:
                # A node is queried again while a client is missing; the same answer is said once.
                if self._declined.get(partition) == declined:
                    continue
                self._declined[partition] = declined
            if partition is None or not self.board.excluded(partition, declined):
                logger.warning("node %d (client %s) cannot take part: %s", node, partition, declined)
        return partitions


def _partition(answer: Message) -> int | None:
    record = answer.content.metric_records.get(train_messages.METRICS)
    partition = None if record is None else record.get("partition-id")
    return partition if type(partition) is int and partition >= 0 else None

"""The one Flower strategy: it samples clients, validates what they send, and lets the method make the next adapter."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsvd import wire
from fedsvd.adapter import PARTS, Adapter, Part
from fedsvd.aggregate import Replies, Reply
from fedsvd.config import Config
from fedsvd.errors import BudgetExceededError, PayloadError
from fedsvd.methods import Method
from fedsvd.secagg import messages
from fedsvd.wire import ClientReport, TrainTask
from fedsvd.workspace import trained_parts
from server.client_level import ClientLevelServer
from server.clients import find_clients
from server.secure_grid import SecureGrid

logger = logging.getLogger(__name__)


@dataclass
class RoundRecord:
    """What one round's communication came to; the run folder keeps it as a row."""

    server_round: int
    sampled: int
    reports: list[ClientReport] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    skipped: bool = False
    bytes_down: int = 0
    bytes_up: int = 0
    seconds_train: float = 0.0
    seconds_aggregate: float = 0.0
    epsilon: float | None = None


class FederatedLoRA(Strategy):
    """Serve every `fedsvd.methods.Method`.

    Args:
        method: Decides what travels and what the server makes of it.
        config: The run's configuration.
        adapter: The adapter to start from, on the device where the server steps run.
        first_round: Rounds already done by an earlier process (0 for a fresh run).
        client_level: Draws clients and noise where privacy is client-level; None elsewhere.
        secure: The grid that takes secure sums; None where each client's update is seen.
    """

    def __init__(
        self,
        method: Method,
        config: Config,
        adapter: Adapter,
        first_round: int = 0,
        client_level: ClientLevelServer | None = None,
        secure: SecureGrid | None = None,
    ) -> None:
        self.method = method
        self.config = config
        self.adapter = adapter
        self.first_round = first_round
        self.client_level = client_level
        self.secure = secure
        self.round = RoundRecord(first_round, 0)
        self._partitions: dict[int, int] = {}
        self._started = 0.0

    def summary(self) -> None:
        """Log what is about to run."""
        logger.info("method %s, %d sites", self.method, len(self.adapter.A))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample clients and address the current factors to them."""
        this_round = self.first_round + server_round
        if not self._partitions:
            self._partitions = find_clients(grid, self.config.federation)
        nodes = self._sample(this_round)
        trains = trained_parts(self.method, self.config, this_round)
        account = self.client_level.account if self.client_level else ""
        task = TrainTask(this_round, trains, self._uplink(this_round), account)
        factors = wire.pack(self.adapter, self.method.downlink(this_round) | (trains & {"head"}))
        self.round = RoundRecord(this_round, len(nodes), bytes_down=wire.payload_bytes(factors) * len(nodes))
        if self.secure:
            self.secure.vector_size = wire.vector_size(self.adapter, self._uplink(this_round))
        self._started = time.perf_counter()
        return [
            Message(
                wire.train_request(task, factors),
                node,
                MessageType.TRAIN,
                # A client that could not answer in time must not go on spending its budget on a lost round.
                ttl=self.config.federation.round_timeout_s,
                group_id=str(this_round),
            )
            for node in nodes
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Drop the replies that are not what was asked for, and step with the rest."""
        self.round.seconds_train = time.perf_counter() - self._started
        good = list(self._good_replies(replies, self.round))
        started = time.perf_counter()
        if self.secure and self.secure.outcome is None:
            return self._skip(self.secure.reason)
        if self.client_level:
            try:
                self.round.epsilon = self.client_level.charge(self.round.server_round)
            except BudgetExceededError as error:
                return self._skip(str(error))
            # However few replied, even none: whether a step is taken must not hang on who took part.
            good = [self._client_level_reply(self.client_level, good)]
        elif self.secure:
            good = [self._secure_mean(self.secure)]
        elif len(good) < self.config.federation.min_replies:
            return self._skip(
                f"{len(good)} usable replies of {self.round.sampled}, federation.min_replies is "
                f"{self.config.federation.min_replies}"
            )
        self.adapter = self.method.server_step(self.adapter, good, self.round.server_round)
        self.round.seconds_aggregate = time.perf_counter() - started
        return wire.pack(self.adapter, [part for part in PARTS if self.adapter.part(part)]), None

    def _secure_mean(self, secure: SecureGrid) -> Reply:
        assert secure.outcome is not None  # noqa: S101 - asked for just before
        parts = wire.split_vector(
            secure.outcome.mean, self._uplink(self.round.server_round), self.adapter, _device(self.adapter)
        )
        return Reply(0, max(1, round(secure.outcome.weight)), parts)

    def _client_level_reply(self, client_level: ClientLevelServer, good: Replies) -> Reply:
        uplink = self._uplink(self.round.server_round)
        if self.secure and self.secure.outcome:
            mean, count = self._secure_mean(self.secure), self.secure.outcome.contributors
            return client_level.aggregate_sum(self.adapter, mean, count, uplink)
        return client_level.aggregate(self.adapter, good, uplink)

    def _skip(self, reason: str) -> tuple[None, None]:
        self.round.skipped = True
        logger.warning("round %d skipped, model unchanged: %s", self.round.server_round, reason)
        return None, None

    def _uplink(self, server_round: int) -> frozenset[Part]:
        head: frozenset[Part] = trained_parts(self.method, self.config, server_round) & {"head"}
        return self.method.uplink(server_round) | head

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client: the server evaluates on held-out data of its own."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None

    def _sample(self, server_round: int) -> list[int]:
        ordered = sorted(self._partitions, key=self._partitions.__getitem__)
        if self.client_level:
            drawn = set(self.client_level.sample())
            return [node for node in ordered if self._partitions[node] in drawn]
        wanted = self.config.federation.clients_per_round or len(ordered)
        if wanted >= len(ordered):
            return ordered
        # A fresh stream a round: a resumed run samples as an uninterrupted one would have.
        chosen = random.Random(f"{self.config.seed}/{server_round}").sample(range(len(ordered)), wanted)
        return [ordered[i] for i in sorted(chosen)]

    def _good_replies(self, replies: Iterable[Message], record: RoundRecord) -> Iterator[Reply]:
        seen: set[int] = set()
        for message in replies:
            node = message.metadata.src_node_id
            partition_id = self._partitions.get(node, -1)
            try:
                reply, report, size = self._read_reply(message, partition_id, record.server_round)
                if partition_id in seen:
                    raise PayloadError("a second reply to one request.")
            except PayloadError as error:
                record.refused[partition_id] = str(error)
                logger.warning("round %d goes on without client %d: %s", record.server_round, partition_id, error)
                continue
            seen.add(partition_id)
            record.reports.append(report)
            record.bytes_up += size
            yield reply

    def _read_reply(self, message: Message, partition_id: int, server_round: int) -> tuple[Reply, ClientReport, int]:
        if message.has_error():
            raise PayloadError(f"error {message.error.code}: {message.error.reason}")
        reason = wire.declined_reason(message.content)
        if reason is not None:
            raise PayloadError(f"it declined: {reason}")
        report, factors = wire.read_train_reply(message.content)
        if report.partition_id != partition_id:
            raise PayloadError(f"it calls itself client {report.partition_id}.")
        if self.secure:
            return Reply(partition_id, 1, {}), report, messages.masked_bytes(message.content)
        parts = wire.unpack(factors, self._uplink(server_round), self.adapter, _device(self.adapter))
        return Reply(partition_id, report.num_examples or 0, parts), report, wire.payload_bytes(factors)


def _device(adapter: Adapter) -> torch.device:
    return next(iter(adapter.A.values())).device

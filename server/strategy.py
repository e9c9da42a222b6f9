"""The Flower strategy: it samples clients, validates replies, aggregates them, and applies the method's server step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsvd.config import Config
from fedsvd.errors import BudgetExceededError
from fedsvd.lora.adapter import PARTS, Adapter, Part, truncate_rank
from fedsvd.methods import Method, State, sent_factors
from fedsvd.methods.aggregate import Replies, Reply
from fedsvd.runs.client_status import StatusBoard
from fedsvd.runtime.round_parts import sent_parts, trained_parts
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import ClientReport, TrainTask
from server.checkpoint import with_prefix
from server.client_level import ClientLevelServer
from server.clients import Clients
from server.diagnostics import site_diagnostics, update_signal_to_noise
from server.downlink import Downlink
from server.personal_factors import PersonalFactors
from server.personal_metrics import mean_personal_metrics
from server.replies import RoundRecord, read_masked_reply, read_plain_reply, valid_replies
from server.reply_aggregation import aggregate_replies, skip_reason
from server.round_time import time_left
from server.secure_bounds import secure_sum_problem
from server.secure_grid import SecureGrid
from server.secure_mean import unpack_mean, with_server_maps
from server.server_optimizer import apply_server_optimizer, transform_optimizer_state

logger = logging.getLogger(__name__)

_SKIPPED = "skipped"


class FederatedLoRA(Strategy):
    """Flower strategy for every `fedsvd.methods.Method`.

    Args:
        method: The method; determines the trained parts and the server step.
        config: The run's configuration.
        adapter: The initial adapter, on the device of the server steps.
        first_round: Number of rounds completed by earlier processes (0 for a new run).
        client_level: Samples clients and adds noise under client-level privacy; None otherwise.
        secure: The grid for secure aggregation; None without.
        state: The `state` of an earlier process, to resume from.
        weights: Frozen weight of each site, for methods that initialize factors from it.
        board: Is told what each client is doing.
        personal: What is known of the factors that clients keep.
    """

    def __init__(
        self,
        method: Method,
        config: Config,
        adapter: Adapter,
        first_round: int = 0,
        client_level: ClientLevelServer | None = None,
        secure: SecureGrid | None = None,
        state: State | None = None,
        weights: Mapping[str, Tensor] | None = None,
        board: StatusBoard | None = None,
        personal: PersonalFactors | None = None,
    ) -> None:
        self.method = method
        self.config = config
        self.first_round = first_round
        self.client_level = client_level
        self.secure = secure
        self._personal = personal or PersonalFactors()
        self.downlink = Downlink(method, adapter, use_cache=secure is None, weights=weights or {})
        if state:
            self.downlink.restore(state)
        self.round = RoundRecord(first_round, 0)
        self._method_state: State = with_prefix(state or {}, "method.")
        self._moments: State = with_prefix(state or {}, "optimizer.")
        self._skipped = int(state[_SKIPPED]["rounds"]) if state and _SKIPPED in state else 0
        self._method_round = 0
        self._clients = Clients(config.federation, board, client_level.prepaid_account if client_level else "")
        self._num_examples: dict[int, int | None] = {}
        self._started = 0.0

    @property
    def adapter(self) -> Adapter:
        """The global adapter."""
        return self.downlink.adapter

    @property
    def state(self) -> State:
        """The state that a resumed run needs in addition to the adapter."""
        method = {f"method.{key}": tensors for key, tensors in self._method_state.items()}
        optimizer = {f"optimizer.{key}": tensors for key, tensors in self._moments.items()}
        skipped = {_SKIPPED: {"rounds": torch.tensor(self._skipped)}}
        return {**self.downlink.state, **self._personal.state, **method, **optimizer, **skipped}

    def summary(self) -> None:
        """Log the method and the number of adapted layers."""
        logger.info("method %s, %d adapted layers", self.method, len(self.adapter.A))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample clients and build each one's request."""
        this_round = self.first_round + server_round
        self._clients.refresh(grid)
        self.round = RoundRecord(this_round, 0)
        if self.client_level:
            # Nothing else keeps this: what is printed says nothing of clients. It does not depend on who is sampled.
            self.round.refused = {n: f"cannot take part: {reason}" for n, reason in self._clients.left_out.items()}
            try:
                self.client_level.admit(self.round)
            except BudgetExceededError as error:
                self.round.refusal = str(error)
                return []
        nodes = self._sample(this_round)
        self.round.sampled, self.round.sampled_clients = len(nodes), self._clients.request(nodes, this_round)
        # A skipped round changes no factor: the next one trains what that one would have.
        self._method_round = this_round - self._skipped
        if self.secure:
            self.secure.vector_size = payload.vector_size(self.adapter, self._uplink)
        self._started = time.perf_counter()
        return [self._request(node, this_round, self.config.federation.round_timeout_s) for node in nodes]

    def full_request(self, message: Message) -> Message:
        """Return a new request that replaces ``message`` and does not rely on the client's cache."""
        node = message.metadata.dst_node_id
        self.downlink.clear_client(node)
        remaining = time_left(self.config.federation.round_timeout_s, time.perf_counter() - self._started)
        return self._request(node, int(message.metadata.group_id), remaining)

    def _request(self, node: int, server_round: int, ttl: float) -> Message:
        account = self.client_level.account if self.client_level else self._personal.account
        versions = self._personal.versions(self._clients.partitions.get(node))
        trains = trained_parts(self.method, self.config, self._method_round)
        evaluate = self.config.train.is_evaluated(server_round) and bool(self.method.traits.personal)
        task = TrainTask(server_round, trains, self._uplink, account, versions, evaluate=evaluate)
        core: frozenset[Part] = frozenset({"core"}) if self.method.traits.core else frozenset()
        # A head that was trained in earlier rounds is sent in those that do not train it, too.
        head = (trains | trained_parts(self.method, self.config, 1)) & {"head"}
        request = self.downlink.request(node, task, core | head, self._lower_rank(node))
        self.round.bytes_down += payload.payload_bytes(request.factors)
        return Message(
            train_messages.train_request(request.task, request.factors),
            node,
            MessageType.TRAIN,
            ttl=ttl,  # A client that receives the message after the deadline must not spend its budget on it.
            group_id=str(server_round),
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Drop invalid replies, and apply the server step to the others."""
        if self.round.refusal:
            return self._skip(self.round.refusal)
        # Replies are consumed as they arrive. If only a sum is needed, no reply is stored.
        valid = valid_replies(replies, self.round, self._clients, self._read)
        level = self.client_level
        clipped = level.sum_clipped_updates(self.adapter, valid, self._uplink) if level else []
        good = aggregate_replies(valid, self.adapter, self.method, self.config)
        self.round.personal_metrics = mean_personal_metrics(self.round.reports)
        if trained_parts(self.method, self.config, self._method_round) & self.method.traits.personal:
            self._personal.add(self.round.reports, self.round.server_round)
        self._num_examples = {r.partition_id: r.num_examples for r in self.round.reports} | self._num_examples
        self.round.seconds_train = time.perf_counter() - self._started
        started = time.perf_counter()
        reason = skip_reason(self.round, self.config, self.secure)
        outcome = self.secure.outcome if self.secure else None
        if outcome and not reason:
            mean = unpack_mean(outcome, self._uplink, self.adapter)
            noise_std = level.shared_noise_std(outcome.contributors) if level else 0.0
            reason = secure_sum_problem(outcome, mean, self.adapter, self.config, self.round.server_round, noise_std)
            good = [] if reason else [with_server_maps(mean, self.adapter, self.config)]
        if reason:
            return self._skip(reason)
        if level:
            level.charge_noise(self.round)
            good = [
                level.aggregate_secure_mean(self.adapter, good[0], outcome.contributors, self._uplink)
                if outcome
                else level.aggregate(self.adapter, clipped, self._uplink)
            ]
        before = self.adapter
        self._step(good)
        self.round.seconds_aggregate = time.perf_counter() - started
        self._diagnose(before, good)
        return payload.pack(self.adapter, [part for part in PARTS if self.adapter.part(part)]), None

    def _diagnose(self, before: Adapter, good: Replies) -> None:
        if sent_factors(self.method, self._method_round):
            self.round.sites = site_diagnostics(before, self.adapter)
        self.round.signal_to_noise = update_signal_to_noise(before, good, self.config)

    def _step(self, good: Replies) -> None:
        before = self.adapter
        updated, moments = apply_server_optimizer(before, good, self._moments, self.config.train)
        step = self.method.server_step(before, updated, self._method_round, self._method_state)
        self._moments = transform_optimizer_state(moments, step, before)
        self._method_state = step.state
        self.downlink.advance(step, self.round.server_round)

    def _read(self, message: Message, partition_id: int) -> tuple[Reply, ClientReport, int]:
        self.downlink.mark_delivered(message.metadata.src_node_id)
        if self.secure:
            return read_masked_reply(message, partition_id)
        rank = self._lower_rank(message.metadata.src_node_id)
        like = self.adapter if rank is None else truncate_rank(self.adapter, rank)
        earlier, server_round = self._num_examples.get(partition_id), self.round.server_round
        return read_plain_reply(message, partition_id, self._uplink, like, self.config, server_round, earlier)

    def _lower_rank(self, node: int) -> int | None:
        ranks = self.config.federation.client_ranks
        rank = ranks[self._clients.partitions[node]] if ranks else self.config.model.rank
        return rank if rank < self.config.model.rank else None

    def _skip(self, reason: str) -> tuple[None, None]:
        self.round.skipped, self.round.refusal = True, reason
        self._skipped += 1
        logger.warning("round %d skipped, model unchanged: %s", self.round.server_round, reason)
        return None, None

    @property
    def _uplink(self) -> frozenset[Part]:
        return sent_parts(self.method, self.config, self._method_round)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing: the server evaluates on held-out data, and clients report metrics in their train replies."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Do nothing: there are no evaluate messages."""

    def _sample(self, server_round: int) -> list[int]:
        if not self.client_level:
            return self._clients.sample(self.config.seed, server_round)
        drawn = set(self.client_level.sample_clients())
        return [node for node in self._clients.participants if self._clients.partitions[node] in drawn]

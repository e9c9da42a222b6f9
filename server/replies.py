"""Clients' replies: read, validated, and either used or rejected with a reason."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

from fedsvd.config import Config
from fedsvd.errors import DivergedError, DivergedUpdateError, PayloadError
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods.aggregate import Reply
from fedsvd.privacy.clipping_statistics import GRADIENT_NOISE_FACTOR
from fedsvd.runtime.round_maps import max_stretch
from fedsvd.secagg import messages
from fedsvd.training.schedule import learning_rate
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import ClientReport
from server.clients import Clients
from server.reply_bounds import check_report, check_update_norm

logger = logging.getLogger(__name__)

# Client number of nodes that do not belong to the run.
UNKNOWN_CLIENT = -1
# Prefix of the reason for which a declined request is recorded.
DECLINED = "the client declined: "


@dataclass
class RoundRecord:
    """The result of one round's communication; it becomes a row of ``metrics.jsonl``.

    ``refused`` has the first reason of each client with a rejected reply, ``dropped`` counts all rejected replies, and
    ``diverged`` counts those of them whose update was not finite or exceeded its norm bound. ``personal_metrics`` has
    the mean metrics of the clients' personalized models. ``lost_attempts`` counts, by node, the attempts that failed
    before the one whose reply was read, and ``lost_before_refusal`` those of each client with a rejected reply.
    Under client-level privacy, ``epsilon`` is that of the server's ledger, ``server_rounds`` is how many rounds it was
    charged for, and ``is_charged`` says whether this round is one of them. ``refusal`` is why it changed nothing.
    """

    server_round: int
    sampled: int
    reports: list[ClientReport] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    dropped: int = 0
    diverged: int = 0
    skipped: bool = False
    bytes_down: int = 0
    bytes_up: int = 0
    seconds_train: float = 0.0
    seconds_aggregate: float = 0.0
    epsilon: float | None = None
    server_rounds: int = 0
    is_charged: bool = False
    refusal: str = ""
    personal_metrics: dict[str, float | None] = field(default_factory=dict)
    signal_to_noise: float | None = None
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    sampled_clients: tuple[int, ...] = ()
    lost_attempts: Counter[int] = field(default_factory=Counter)
    lost_before_refusal: dict[int, int] = field(default_factory=dict)


def valid_replies(
    replies: Iterable[Message],
    record: RoundRecord,
    clients: Clients,
    read: Callable[[Message, int], tuple[Reply, ClientReport, int]],
) -> Iterator[Reply]:
    """Yield the valid replies as they arrive, and enter all replies in the round's record.

    Args:
        replies: The replies, as they arrive.
        record: Updated with reports, reasons for rejections, and bytes.
        clients: The run's clients.
        read: Function from a message and its client number to reply, report and bytes; raises `PayloadError`.
    """
    accepted: set[int] = set()
    for message in replies:
        node = message.metadata.src_node_id
        partition_id = clients.partitions.get(node, UNKNOWN_CLIENT)
        try:
            if partition_id in accepted:
                raise PayloadError("a second reply to the same request.")
            reply, report, size = _read(message, partition_id, record.server_round, read)
        except PayloadError as error:
            record.diverged += isinstance(error, DivergedUpdateError)
            record.lost_before_refusal[partition_id] = record.lost_attempts[node]
            is_printed = clients.board.excluded(partition_id, str(error))
            _refuse(record, partition_id, node, str(error), log=not (is_printed or clients.board.hides_rounds))
            continue
        accepted.add(partition_id)
        clients.board.replied(partition_id, report.seconds)
        record.reports.append(report)
        record.bytes_up += size
        yield reply


def _read(
    message: Message,
    partition_id: int,
    server_round: int,
    read: Callable[[Message, int], tuple[Reply, ClientReport, int]],
) -> tuple[Reply, ClientReport, int]:
    if partition_id == UNKNOWN_CLIENT:
        raise PayloadError("the node has no client of this run.")
    if message.has_error():
        reason = message.error.reason or "no reason given"
        raise _client_error(reason, f"error {message.error.code}: {train_messages.one_line(reason)}")
    declined = train_messages.declined_reason(message.content)
    if declined is not None:
        raise _client_error(declined, f"{DECLINED}{declined}")
    reply, report, size = read(message, partition_id)
    if report.partition_id != partition_id:
        raise PayloadError(f"the report is of client {report.partition_id}.")
    if report.server_round != server_round:
        raise PayloadError(f"the report is for round {report.server_round}.")
    return reply, report, size


def _client_error(reason: str, message: str) -> PayloadError:
    """Return the error for a client that sends no update; its reason begins with the type of its exception."""
    return (DivergedUpdateError if DivergedError.__name__ in reason.split(":")[0] else PayloadError)(message)


def _refuse(record: RoundRecord, partition_id: int, node: int, reason: str, *, log: bool) -> None:
    record.dropped += 1
    # The first reason is kept. A node without a client is recorded under UNKNOWN_CLIENT, never under a client's number.
    record.refused.setdefault(partition_id, reason)
    if not log:
        return
    sender = f"client {partition_id}" if partition_id != UNKNOWN_CLIENT else f"node {node}"
    logger.warning("round %d: dropped the reply of %s: %s", record.server_round, sender, reason)


def check_divergence(record: RoundRecord, config: Config) -> None:
    """Check that not all updates of a round diverged, since more rounds would waste privacy.

    Raises:
        DivergedError: Every sampled client's update was non-finite or too large.
    """
    if 0 < record.sampled <= record.diverged:
        raise DivergedError(
            f"all {record.sampled} updates of round {record.server_round} are non-finite or too large for the "
            "settings: training has diverged, and more rounds would waste privacy; decrease train.learning_rate "
            f"({config.train.learning_rate:g})."
        )


def read_plain_reply(
    message: Message,
    partition_id: int,
    parts: frozenset[Part],
    like: Adapter,
    config: Config,
    server_round: int,
    earlier_num_examples: int | None = None,
) -> tuple[Reply, ClientReport, int]:
    """Read a reply of a run without secure aggregation, whose factors the server can see.

    Args:
        message: The reply.
        partition_id: The client's number.
        parts: The requested parts.
        like: Adapter that the client started from.
        config: The run's configuration.
        server_round: 1-based.
        earlier_num_examples: Number of examples that the client reported earlier in this run, if any.

    Returns:
        The reply, the client's report, and the number of bytes.

    Raises:
        PayloadError: If the reply is not valid.
    """
    report, factors = train_messages.read_train_reply(message.content)
    weighting = config.federation.weighting
    if report.num_examples is None and weighting != "uniform":
        raise PayloadError(f"num_examples is missing: federation.weighting={weighting} requires it.")
    check_report(report, config, earlier_num_examples)
    tensors = payload.unpack(factors, parts, like, like.device)
    check_update_norm(tensors, like, report, config, server_round, max_stretch(config, parts))
    noise_std = report_noise_std(report, config, server_round)
    weight = _weight(report, noise_std, weighting)
    return Reply(partition_id, weight, tensors, noise_std), report, payload.payload_bytes(factors)


def _weight(report: ClientReport, noise_std: float, weighting: str) -> float:
    if weighting == "uniform":
        return 1
    if weighting == "examples":
        return report.num_examples or 0
    if not noise_std:
        raise PayloadError(
            "noise_multiplier or sample_rate is missing: federation.weighting=inverse_variance needs both."
        )
    return 1 / noise_std**2


def read_masked_reply(message: Message, partition_id: int) -> tuple[Reply, ClientReport, int]:
    """Read a reply of a run with secure aggregation, whose factors are part of a secure sum.

    Raises:
        PayloadError: If the report is not valid.
    """
    report, _ = train_messages.read_train_reply(message.content)
    return Reply(partition_id, 1, {}), report, messages.masked_bytes(message.content)


def report_noise_std(report: ClientReport, config: Config, server_round: int) -> float:
    """Return the standard deviation of the noise in each entry of a client's factors; 0 if it is not known.

    That in the head differs by `server.diagnostics.head_noise_ratio`. With ``privacy.standardize_inputs``, that in A is
    the one before A's public map, which is the same at all clients.

    Plain SGD adds noise of standard deviation ``learning_rate · σ · max_grad_norm / (sample_rate · num_examples)`` per
    step, and the variances of the steps add up.
    """
    if config.privacy.name != "dp_sgd" or config.train.optimizer != "sgd" or config.train.momentum:
        return 0.0
    if report.noise_multiplier is None or not report.sample_rate or not report.num_examples:
        return 0.0
    step = learning_rate(config.train, server_round) * report.noise_multiplier * config.privacy.max_grad_norm
    if report.clipped_share is not None:
        step *= GRADIENT_NOISE_FACTOR
    return step * math.sqrt(config.train.local_steps) / (report.sample_rate * report.num_examples)

"""The server side of secure aggregation: a Grid that runs a round of training as four stages and one secure sum."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
from cryptography.exceptions import InvalidTag
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedsvd.errors import PayloadError
from fedsvd.launch.forwarding_grid import ForwardingGrid
from fedsvd.secagg import keys, vectors
from fedsvd.secagg import messages as secure_messages
from fedsvd.wire import train_messages
from server.round_time import time_left

# The share of a round's time at which each stage ends at the latest, so that a silent client does not take the time of
# the stages that follow. A stage that ends earlier leaves its time to them.
STAGE_ENDS: Mapping[secure_messages.Stage, float] = {"setup": 0.25, "share": 0.35, "collect": 0.9, "unmask": 1.0}


@dataclass(frozen=True)
class SecureSum:
    """The result of a secure round.

    Attributes:
        mean: Weighted mean of the clients' vectors, float64 of shape (n,).
        weight: Sum of their weights.
        contributors: Number of clients in the sum.
    """

    mean: np.ndarray
    weight: float
    contributors: int


class SecureGrid(ForwardingGrid):
    """Forward all calls, but run rounds of training with secure aggregation, which reveals only a sum of updates.

    Args:
        grid: The grid to forward to.
        min_survivors: Minimum number of clients in a sum.
        control_grid: Another grid for the stages without training; by default ``grid``.

    Attributes:
        vector_size: Number of values that each client sends; must be set before each round.
        outcome: The last round's sum, or None if it failed.
        reason: Why the last round has no sum.
    """

    def __init__(self, grid: Grid, min_survivors: int, control_grid: Grid | None = None) -> None:
        super().__init__(grid)
        self._control_grid = control_grid or grid
        self._min_survivors = min_survivors
        self.vector_size = 0
        self.outcome: SecureSum | None = None
        self.reason = ""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run the four stages for train messages; the replies contain the reports, and `outcome` contains the sum."""
        sent = list(messages)
        if not sent or sent[0].metadata.message_type != MessageType.TRAIN:
            return self._grid.send_and_receive(sent, timeout=timeout)
        self.outcome, self.reason = None, ""
        secure_round = _SecureRound(self, sent, timeout)
        try:
            self.outcome = secure_round.run()
        # Invalid keys and shares raise various errors in the cryptography library.
        except (PayloadError, ValueError, TypeError, KeyError, InvalidTag) as error:
            self.reason = train_messages.one_line(str(error) or type(error).__name__)
        return secure_round.replies


class _SecureRound:
    """The stages of one secure round."""

    def __init__(self, grid: SecureGrid, sent: list[Message], timeout: float | None) -> None:
        self._grid = grid
        self._sent = {message.metadata.dst_node_id: message for message in sent}
        self._started, self._timeout = time.monotonic(), timeout
        self._session = uuid4().hex
        self.replies: list[Message] = []

    def run(self) -> SecureSum:
        """Run all stages and return the sum.

        Raises:
            PayloadError: If too few clients complete a stage, or an answer is invalid.
        """
        set_up = self._run_stage("setup", {node: {} for node in self._sent})
        channel = {node: secure_messages.read_key(reply, "channel-key") for node, reply in set_up.items()}
        mask = {node: secure_messages.read_key(reply, "mask-key") for node, reply in set_up.items()}
        nodes = sorted(set_up)
        needed = keys.reconstruction_threshold(len(nodes), self._grid._min_survivors)
        self._require(set_up, needed, "sent their public keys")
        public_keys = {
            "nodes": nodes,
            "channel_keys": [channel[node] for node in nodes],
            "mask_keys": [mask[node] for node in nodes],
        }
        shared = self._run_stage("share", dict.fromkeys(nodes, public_keys))
        self._require(shared, needed, "sent their key shares")
        shares = {
            node: secure_messages.read_node_map(reply, "holders", "ciphertexts") for node, reply in shared.items()
        }
        sources = sorted(shares)
        masked = self._run_stage(
            "collect",
            {node: {"sources": sources, "ciphertexts": [shares[s][node] for s in sources]} for node in shares},
        )
        received = {
            node: secure_messages.masked_vector(reply, self._grid.vector_size + 1) for node, reply in masked.items()
        }
        self._require(received, needed, "sent a masked vector")
        alive, dead = sorted(received), sorted(set(shares) - set(received))
        opened = self._run_stage("unmask", {node: {"alive": alive, "dead": dead} for node in alive})
        self._require(opened, needed, "sent shares for unmasking")
        unmask_shares = [secure_messages.read_node_map(reply, "nodes", "shares") for reply in opened.values()]
        mean, weight = vectors.decode(self._unmask(received, dead, unmask_shares, mask))
        return SecureSum(mean, weight, len(alive))

    def _unmask(
        self,
        received: Mapping[int, np.ndarray],
        dead: list[int],
        shares: list[dict[int, bytes]],
        public: Mapping[int, bytes],
    ) -> np.ndarray:
        size = self._grid.vector_size + 1
        total = vectors.add(np.zeros(size, dtype=np.uint64), list(received.values()))
        for node in received:
            total -= vectors.mask(keys.reconstruct_secret([answer[node] for answer in shares]), size)
        for dropout in dead:
            private = keys.reconstruct_secret([answer[dropout] for answer in shares])
            for node in received:
                pairwise = vectors.mask(keys.shared_key(private, public[node], "mask"), size)
                # The survivor added this mask if its ID is smaller than the dropout's, else subtracted it; the dropout
                # never sent its counterpart.
                total = total - pairwise if node < dropout else total + pairwise
        return total

    def _run_stage(
        self, stage: secure_messages.Stage, fields: Mapping[int, Mapping[str, object]]
    ) -> dict[int, RecordDict]:
        """Send one stage to the given nodes, and return the answers of those that answered."""
        training, timeout = stage == "collect", self._remaining(stage)
        sent = []
        for node, values in fields.items():
            original = self._sent[node]
            content = secure_messages.request(stage, self._session, original.content if training else None, **values)
            # A client that receives the message after the end of its stage must not spend its budget on it.
            ttl = original.metadata.ttl if timeout is None else min(original.metadata.ttl, timeout)
            sent.append(Message(content, node, MessageType.TRAIN, ttl=ttl, group_id=original.metadata.group_id))
        grid = self._grid._grid if training else self._grid._control_grid
        answers: dict[int, RecordDict] = {}
        for reply in grid.send_and_receive(sent, timeout=timeout):
            refused = reply.has_error() or train_messages.declined_reason(reply.content) is not None
            if training or refused:
                self.replies.append(reply)
            if not refused:
                answers[reply.metadata.src_node_id] = reply.content
        return answers

    def _remaining(self, stage: secure_messages.Stage) -> float | None:
        """Return the seconds until the end of a stage; None if the round has no timeout."""
        if self._timeout is None:
            return None
        return time_left(STAGE_ENDS[stage] * self._timeout, time.monotonic() - self._started)

    def _require(self, nodes: Collection[int], needed: int, action: str) -> None:
        if len(nodes) < needed:
            raise PayloadError(
                f"{len(nodes)} of {len(self._sent)} clients {action}: a secure sum needs at least {needed}."
            )

"""The server's half of secure aggregation: a Grid that turns a round of training into four stages and one sum."""

from __future__ import annotations

import logging
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
from fedsvd.secagg import messages as wording
from fedsvd.wire import train_messages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SecureSum:
    """What a secure round came to.

    Attributes:
        mean: Weighted mean of the clients' vectors, float64 of shape (n,).
        weight: Sum of their weights.
        contributors: How many clients are in it.
    """

    mean: np.ndarray
    weight: float
    contributors: int


class SecureGrid(ForwardingGrid):
    """Pass everything on, but let a round of training reveal nothing but a sum.

    Args:
        grid: The grid that does the work.
        min_survivors: Fewest clients that a sum is taken over.
        quiet: Another grid for the stages in which nobody trains; by default the same.

    Attributes:
        vector_size: Number of values that each client sends in this round; to be set before it.
        outcome: The last round's sum, or None.
        reason: Why there is none.
    """

    def __init__(self, grid: Grid, min_survivors: int, quiet: Grid | None = None) -> None:
        super().__init__(grid)
        self._quiet = quiet or grid
        self._min_survivors = min_survivors
        self.vector_size = 0
        self.outcome: SecureSum | None = None
        self.reason = ""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run the four stages for train messages; the replies hold reports, `outcome` the sum (None: `reason`)."""
        sent = list(messages)
        if not sent or sent[0].metadata.message_type != MessageType.TRAIN:
            return self._grid.send_and_receive(sent, timeout=timeout)
        self.outcome, self.reason = None, ""
        stages = _Stages(self, sent, timeout)
        try:
            self.outcome = stages.run()
        # Keys and shares that are none fail in ways of their own.
        except (PayloadError, ValueError, TypeError, KeyError, InvalidTag) as error:
            self.reason = train_messages.one_line(str(error) or type(error).__name__)
        return stages.replies


class _Stages:
    """One secure round."""

    def __init__(self, grid: SecureGrid, sent: list[Message], timeout: float | None) -> None:
        self._grid = grid
        self._sent = {message.metadata.dst_node_id: message for message in sent}
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._session = uuid4().hex
        self.replies: list[Message] = []

    def run(self) -> SecureSum:
        """Take the sum.

        Raises:
            PayloadError: Too few clients for one stage, or answers that do not fit.
        """
        set_up = self._ask("setup", {node: {} for node in self._sent})
        channel = {node: wording.read_key(reply, "channel-key") for node, reply in set_up.items()}
        mask = {node: wording.read_key(reply, "mask-key") for node, reply in set_up.items()}
        nodes = sorted(set_up)
        needed = keys.threshold(len(nodes), self._grid._min_survivors)
        self._enough(set_up, needed, "agreed on keys")
        lists = {
            "nodes": nodes,
            "channel_keys": [channel[node] for node in nodes],
            "mask_keys": [mask[node] for node in nodes],
        }
        shared = self._ask("share", dict.fromkeys(nodes, lists))
        self._enough(shared, needed, "shared their keys")
        boxes = {node: wording.read_node_map(reply, "holders", "ciphertexts") for node, reply in shared.items()}
        masked = self._ask(
            "collect",
            {
                node: {"sources": sorted(boxes), "ciphertexts": [boxes[source][node] for source in sorted(boxes)]}
                for node in boxes
            },
        )
        found = {node: wording.masked_vector(reply, self._grid.vector_size + 1) for node, reply in masked.items()}
        self._enough(found, needed, "sent a masked vector")
        alive, dead = sorted(found), sorted(set(boxes) - set(found))
        opened = self._ask("unmask", {node: {"alive": alive, "dead": dead} for node in alive})
        self._enough(opened, needed, "helped to unmask")
        total = self._unmask(
            found, dead, [wording.read_node_map(reply, "nodes", "shares") for reply in opened.values()], mask
        )
        mean, weight = vectors.decode(total)
        return SecureSum(mean, weight, len(alive))

    def _unmask(
        self,
        found: Mapping[int, np.ndarray],
        dead: list[int],
        shares: list[dict[int, bytes]],
        public: Mapping[int, bytes],
    ) -> np.ndarray:
        size = self._grid.vector_size + 1
        total = vectors.add(np.zeros(size, dtype=np.uint64), list(found.values()))
        for node in found:
            total -= vectors.mask(keys.reconstruct_secret([given[node] for given in shares]), size)
        for gone in dead:
            private = keys.reconstruct_secret([given[gone] for given in shares])
            for node in found:
                pairwise = vectors.mask(keys.shared_key(private, public[node], "mask"), size)
                # The survivor added it where its number is the smaller one, and nobody subtracted it.
                total = total - pairwise if node < gone else total + pairwise
        return total

    def _ask(self, stage: wording.Stage, fields: Mapping[int, Mapping[str, object]]) -> dict[int, RecordDict]:
        """Send one stage to some nodes, and return the answers of those that gave one."""
        training = stage == "collect"
        sent = []
        for node, values in fields.items():
            original = self._sent[node]
            content = wording.request(stage, self._session, original.content if training else None, **values)
            ttl, group = original.metadata.ttl, original.metadata.group_id
            sent.append(Message(content, node, MessageType.TRAIN, ttl=ttl, group_id=group))
        timeout = None if self._deadline is None else max(0.1, self._deadline - time.monotonic())
        grid = self._grid._grid if training else self._grid._quiet
        answers: dict[int, RecordDict] = {}
        for reply in grid.send_and_receive(sent, timeout=timeout):
            refused = reply.has_error() or train_messages.declined_reason(reply.content) is not None
            if training or refused:
                self.replies.append(reply)
            if not refused:
                answers[reply.metadata.src_node_id] = reply.content
        return answers

    def _enough(self, nodes: Collection[int], needed: int, what: str) -> None:
        if len(nodes) < needed:
            raise PayloadError(
                f"{len(nodes)} of {len(self._sent)} clients {what}; {needed} are needed for a secure sum."
            )

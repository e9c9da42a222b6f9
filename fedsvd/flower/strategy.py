"""Flower's FedAvg with the server step of a method of fedsvd."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import TypedDict, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedsvd.errors import PayloadError, RunError
from fedsvd.flower.arrays import SentArrays, read_parts
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import Method, State, sent_factors
from fedsvd.methods.aggregate import Replies, Reply

# Flower's own logger, so that messages appear among those of other strategies.
logger = logging.getLogger("flwr")

FACTORS_KEY = "lora-factors"


class FedAvgOptions(TypedDict, total=False):
    """The options of Flower's `FedAvg`, with its defaults; see its documentation."""

    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    train_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord] | None
    evaluate_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord] | None


class LoRAStrategy(FedAvg):
    """Flower's FedAvg for PEFT state dicts, with the server step of a method.

    Sampling, messages, metrics and evaluation are those of `FedAvg`. Of the replies, the factors that the method
    averages go through its server step, and all other arrays (heads, biases, full layers) are averaged. The weights are
    those of ``weighted_by_key``. A reply may leave out arrays that its client did not train: they stay as they are. The
    next arrays always hold everything, with the keys and dtypes of ``initial_arrays``.

    An unusable reply is left out, with a warning that says why; if no other is left, this is an error.

    Args:
        method: The method.
        options: Options of `FedAvg`.
    """

    def __init__(self, method: Method, **options: Unpack[FedAvgOptions]) -> None:
        super().__init__(**options)
        self.method = method
        self._sent: SentArrays | None = None
        self._state: State = {}
        self._skipped = self._method_round = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the arrays and the names of the factors to train to sampled nodes.

        Raises:
            ModelError: The arrays are no state dict of a PEFT model with LoRA layers.
        """
        self._sent = SentArrays.from_record(arrays)
        if server_round == 1:
            self._state, self._skipped = {}, 0
        # A round without replies changes no factor: the next one trains what it would have trained.
        self._method_round = server_round - self._skipped
        config[FACTORS_KEY] = "".join(sorted(self.method.trains(self._method_round)))
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, and apply the method's server step.

        Raises:
            PayloadError: Clients have replied, and no reply can be used.
            RunError: The weights of the replies are not positive, or no arrays were sent before.
        """
        sent = self._sent
        if sent is None:
            raise RunError("aggregate_train was called before configure_train: no arrays were sent.")
        left, good = self._read(replies, sent)
        # Flower checks the metrics of the replies that are left, and averages them. Its mean of the arrays is not used.
        arrays, metrics = super().aggregate_train(server_round, left)
        if arrays is None:
            self._skipped += 1
            return None, metrics
        return sent.to_record(self._step(sent, good)), metrics

    def _read(self, replies: Iterable[Message], sent: SentArrays) -> tuple[list[Message], list[Reply]]:
        """Return the replies without the unusable ones, and the content of those that are not errors."""
        left, good, reasons = [], [], []
        factors = sent_factors(self.method, self._method_round)
        for message in replies:
            if message.has_error():
                left.append(message)
                continue
            node = message.metadata.src_node_id
            try:
                weight = _weight(message, self.weighted_by_key)
                good.append(Reply(node, weight, read_parts(message, sent, factors)))
                left.append(message)
            except PayloadError as error:
                reasons.append(error)
                logger.warning("\t> Left out the reply of node %d: %s", node, error)
        if reasons and not good:
            raise reasons[0]
        if good and not sum(reply.num_examples for reply in good):
            raise RunError(
                f"the metric {self.weighted_by_key} is 0 in all {len(good)} replies: at least one must be positive."
            )
        return left, good

    def _step(self, sent: SentArrays, replies: Replies) -> Adapter:
        """Apply the server step; tensors that the replies leave out stay as they are."""
        head = {key: sent.adapter.head[key] for key in replies[0].parts["head"]}
        before = sent.adapter.with_parts({"head": head})
        step = self.method.server_step(before, replies, self._method_round, self._state)
        self._state = step.state
        return step.adapter.with_parts({"head": {**sent.adapter.head, **step.adapter.head}})


def _weight(message: Message, key: str) -> float:
    """Return a reply's weight in the means.

    Raises:
        PayloadError: It is missing, or not a number of at least 0.
    """
    values = [record[key] for record in message.content.metric_records.values() if key in record]
    if len(values) != 1 or isinstance(values[0], list) or not 0 <= values[0] < math.inf:
        raise PayloadError(
            f"the metric {key} is {values[0] if values else 'missing'}: expected one number of at least 0, the reply's "
            "weight. Reply with MetricRecord({...}), or choose another metric by weighted_by_key."
        )
    return float(values[0])

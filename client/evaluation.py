"""The model that a client makes of a request, and how good it is."""

from __future__ import annotations

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from client.held import receive
from client.personal import with_personal
from client.state import ClientIdentity
from fedsvd import lora, wire
from fedsvd.adapter import Adapter
from fedsvd.config import Config
from fedsvd.errors import DataError
from fedsvd.methods import build_method
from fedsvd.training import evaluate
from fedsvd.wire import TrainTask
from fedsvd.workspace import (
    client_config,
    initial_adapter,
    load_model,
    load_test_batches,
    load_test_prefix,
    resolve_device,
)


def received_adapter(
    config: Config, identity: ClientIdentity, task: TrainTask, factors: ArrayRecord, state: RecordDict
) -> Adapter:
    """Return the adapter that this client is to start from: what was sent, what it holds, and what is its own.

    Raises:
        LostStateError: See `client.held.receive`; `PayloadError`, too.
    """
    method = build_method(config.method)
    device = resolve_device(config.device)
    adapter = receive(task, factors, state, initial_adapter(config, method), method, device)
    return with_personal(identity.personal, adapter, method.traits.personal)


def run_evaluation(
    config: Config, identity: ClientIdentity, task: TrainTask, factors: ArrayRecord, state: RecordDict
) -> RecordDict:
    """Measure this client's own model on the held-out data, which are nobody's private data."""
    config = client_config(config, identity.partition_id)
    batches = load_test_batches(config)
    if not batches:
        raise DataError("this node has no held-out texts to measure its own model on (test-path in its configuration).")
    model = load_model(config)
    lora.write(model, received_adapter(config, identity, task, factors, state))
    result = evaluate(model, batches, resolve_device(config.device), load_test_prefix(config))
    return RecordDict({wire.METRICS: MetricRecord({"accuracy": result.accuracy, "loss": result.loss})})

"""A client's starting adapter, and evaluation of its personalized model."""

from __future__ import annotations

from flwr.app import ArrayRecord, RecordDict

from client.factor_cache import receive_factors
from client.identity import ClientIdentity
from client.personal_factors import with_personal_factors
from fedsvd.config import Config
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_run_method
from fedsvd.runtime.data import load_test_batches
from fedsvd.runtime.losses import load_prefix_cache, run_objective
from fedsvd.runtime.model import initial_adapter, load_model, resolve_device
from fedsvd.training.evaluation import Evaluation, evaluate
from fedsvd.wire.train_messages import TrainTask


def received_adapter(
    config: Config, identity: ClientIdentity, task: TrainTask, factors: ArrayRecord, state: RecordDict
) -> Adapter:
    """Return the adapter that a local round starts from: received, cached and personal factors combined.

    Raises:
        StaleCacheError: See `client.factor_cache.receive_factors`.
        PayloadError: See `client.factor_cache.receive_factors`.
        RunError: See `client.personal_factors.with_personal_factors`.
    """
    method = build_run_method(config)
    device = resolve_device(config.device)
    adapter = receive_factors(task, factors, state, initial_adapter(config, method), method, device)
    return with_personal_factors(identity, task, adapter, method.traits.personal)


def evaluate_personal_model(config: Config) -> Evaluation | None:
    """Evaluate the process's model on the held-out data; None if there is none.

    The result is sent without noise. A simulated client has the run's held-out data, a real node the file that its
    owner has named for this (``test-path``).
    """
    batches, device = load_test_batches(config), resolve_device(config.device)
    if not batches:
        return None
    return evaluate(load_model(config), batches, device, run_objective(config), load_prefix_cache(config))

"""One client's round: factors into the model, steps on the client's own data, factors out."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from flwr.app import ArrayRecord, RecordDict

from client.evaluation import evaluate_personal_model, received_adapter
from client.identity import ClientIdentity
from client.ledger_charge import charge_round, charge_whole_run, mark_released
from client.personal_factors import save_personal_factors
from client.setting_warnings import warn_unusual_settings
from fedsvd.config import Config
from fedsvd.errors import DataError, PayloadError
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method
from fedsvd.methods.aggregate import flatten_parts, unflatten_parts
from fedsvd.privacy.client_level import add_noise, clip_update, run_spend
from fedsvd.privacy.noise_share import client_noise_multiplier
from fedsvd.privacy.plan import poisson_rate
from fedsvd.privacy.randomness import poisson_batches
from fedsvd.runtime.data import ClientData, load_client_data
from fedsvd.runtime.losses import per_example_losses
from fedsvd.runtime.model import client_config, load_model, trained_parts
from fedsvd.runtime.private_round import round_mechanism, secret_randomness, train_privately
from fedsvd.training.loop import make_optimizer, train_plain
from fedsvd.wire import payload, train_messages
from fedsvd.wire.train_messages import ClientReport, TrainTask


def run_local_round(
    config: Config,
    identity: ClientIdentity,
    task: TrainTask,
    factors: ArrayRecord,
    message_id: str,
    state: RecordDict | None = None,
) -> RecordDict:
    """Run one round and return the reply's content; ``state`` is what Flower keeps for this node in between.

    What leaves the client: the trained parts (under DP-SGD noised, and paid for in the ledger before training starts),
    and the public numbers of `fedsvd.wire.train_messages.ClientReport`.

    Raises:
        PayloadError: The server's factors do not fit this client's model, or it asks for parts that the method does
            not train, or does not send.
        LostStateError: The server takes this client to hold what it does not; nothing was spent.
        LimitError: The run asks for more than this client's own limits allow; nothing was spent.
        ReplayedMessageError: The message was charged before; nothing was spent.
        BudgetExceededError: The round's steps would exceed this client's ε; nothing was spent.
    """
    started = time.perf_counter()
    identity.limits.check(config)
    config = client_config(config, identity.partition_id)
    if not 1 <= task.server_round <= config.train.num_rounds:
        raise PayloadError(f"there is no round {task.server_round}; this run has {config.train.num_rounds}.")
    method = build_method(config.method)
    allowed = trained_parts(method, config, task.server_round)
    if not task.trains <= allowed:
        raise PayloadError(
            f"the server asks to train {sorted(task.trains)}; this client's method and train.head allow "
            f"{sorted(allowed)}. Do both ends run one configuration?"
        )
    allowed_up = method.uplink(task.server_round) | (allowed & {"head"})
    if not task.uplink <= allowed_up:
        raise PayloadError(
            f"the server asks for {sorted(task.uplink)}; with this method no more than {sorted(allowed_up)} leave a "
            "client. Do both ends run one configuration?"
        )
    received = received_adapter(config, identity, task, factors, RecordDict() if state is None else state)
    silo = load_client_data(config, identity.partition_id)
    if not len(silo.examples):
        raise DataError(f"client {identity.partition_id} holds no examples; it can take no part.")
    warn_unusual_settings(config, identity.partition_id, len(silo.examples))
    if config.privacy.name == "dp_sgd":
        report = _train_private(config, identity, task, received, silo, message_id)
        trained = peft_model.read(load_model(config))
    elif config.privacy.name == "client_level":
        report = _train_for_client_level(config, identity, task, received, silo)
        trained = _clipped_update(received, peft_model.read(load_model(config)), task, config)
    else:
        report = _train_open(config, identity, task, received, silo)
        trained = peft_model.read(load_model(config))
    if method.traits.personal:
        save_personal_factors(identity.personal, trained, method.traits.personal)
        own = evaluate_personal_model(config) if task.evaluate else None
        if own is not None:
            report = replace(report, accuracy=own.accuracy, loss=own.loss)
    report = replace(report, seconds=time.perf_counter() - started, server_round=task.server_round)
    if config.federation.weighting == "uniform":
        report = train_messages.hide_counts(report)
    return train_messages.train_reply(report, payload.pack(trained, task.uplink))


def _train_private(
    config: Config, identity: ClientIdentity, task: TrainTask, adapter: Adapter, silo: ClientData, message_id: str
) -> ClientReport:
    num_examples = len(silo.examples)
    charge = charge_round(config, identity, silo.fingerprint, num_examples, task.server_round, message_id)
    spend = charge.spend
    peft_model.write(load_model(config), adapter)
    mechanism = round_mechanism(config, spend)
    seen = train_privately(
        config, task.server_round, task.trains, per_example_losses(silo, config), num_examples, mechanism
    )
    mark_released(identity, silo.fingerprint, message_id)
    return ClientReport(
        identity.partition_id,
        num_examples,
        0.0,
        charge.epsilon,
        spend.noise_multiplier,
        spend.sample_rate,
        charge.steps,
        clipped_share=seen.clipped_share if seen else None,
        mean_grad_norm=seen.mean_grad_norm if seen else None,
    )


def _train_open(
    config: Config, identity: ClientIdentity, task: TrainTask, adapter: Adapter, silo: ClientData
) -> ClientReport:
    num_examples = len(silo.examples)
    model = load_model(config)
    peft_model.write(model, adapter)
    loss = train_plain(
        model,
        make_optimizer(peft_model.set_trainable(model, task.trains), config.train, task.server_round),
        per_example_losses(silo, config),
        poisson_batches(
            num_examples,
            poisson_rate(num_examples, config.train.batch_size),
            config.train.local_steps,
            _round_generator(config.seed, task.server_round, identity.partition_id),
        ),
        config.train.clip_grad_norm,
    )
    return ClientReport(identity.partition_id, num_examples, 0.0, train_loss=loss if loss == loss else None)


def _train_for_client_level(
    config: Config, identity: ClientIdentity, task: TrainTask, adapter: Adapter, silo: ClientData
) -> ClientReport:
    """Train without noise (the server adds it), after the whole run has been charged once.

    The whole run, because its later rounds cost every client, whether they are drawn again or not.
    """
    if not task.account:
        raise PayloadError("the server names no account for this run; with privacy=client_level it must.")
    charge = charge_whole_run(config, identity, silo.fingerprint, task.account)
    report = _train_open(config, identity, task, adapter, silo)
    return replace(
        report,
        train_loss=None,
        epsilon=charge.epsilon,
        noise_multiplier=charge.spend.noise_multiplier,
        sample_rate=charge.spend.sample_rate,
        steps=charge.steps,
    )


def _clipped_update(before: Adapter, after: Adapter, task: TrainTask, config: Config) -> Adapter:
    """Move back along the update of all parts that are sent, until its joint norm is within the bound.

    With ``noise_share`` this client's share of the noise is added, for a secure sum to carry the whole.
    """
    old = [tensor.double() for tensor in flatten_parts(before, task.uplink)]
    update = [new.double() - start for new, start in zip(flatten_parts(after, task.uplink), old, strict=True)]
    moves = clip_update(update, config.privacy.max_update_norm)
    if config.privacy.noise_share:
        sigma = run_spend(config.privacy, config.train, config.federation).noise_multiplier
        moves = add_noise(
            moves, client_noise_multiplier(sigma, config) * config.privacy.max_update_norm, secret_randomness(config)
        )
    return unflatten_parts(after, task.uplink, [start + move for start, move in zip(old, moves, strict=True)])


def _round_generator(seed: int, server_round: int, partition_id: int) -> torch.Generator:
    """One stream a client and round: a resumed run draws what an uninterrupted one would have drawn."""
    return torch.Generator().manual_seed((seed * 1_000_003 + server_round) * 1_000_003 + partition_id)

"""A client's local round: load the received factors, train on the client's data, return the trained parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from flwr.app import ArrayRecord, RecordDict

from client.clipped_update import clipped_update
from client.evaluation import evaluate_personal_model, received_adapter
from client.identity import ClientIdentity
from client.ledger_charge import charge_round, charge_shared_noise, charge_whole_run, mark_released
from client.personal_factors import check_writable, personal_path, save_personal_factors
from client.setting_warnings import warn_unusual_settings
from fedsvd.config import Config
from fedsvd.errors import DataError, PayloadError
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import Method, build_run_method
from fedsvd.privacy.plan import example_sample_rate
from fedsvd.privacy.randomness import poisson_batches
from fedsvd.runtime.data import ClientData, load_client_data
from fedsvd.runtime.losses import batch_limit, example_lengths, padded_widths, per_example_losses
from fedsvd.runtime.model import check_model, client_config, load_model
from fedsvd.runtime.round_maps import round_maps
from fedsvd.runtime.round_parts import prepare_training, sent_parts, trained_parts
from fedsvd.runtime.rounding import check_rounding
from fedsvd.runtime.run_checks import check_run
from fedsvd.training.loop import train_plain
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
    """Run one local round and return the content of the reply.

    The reply contains the trained parts (under DP-SGD, with noise, and charged to the ledger before training starts)
    and the numbers of `fedsvd.wire.train_messages.ClientReport`, nothing else.

    Args:
        config: The run's configuration, as this node sees it.
        identity: The client's identity, limits and private files.
        task: The round's task.
        factors: The received arrays.
        message_id: Flower's ID of the message, for the ledger.
        state: The state that Flower stores for this node between messages.

    Raises:
        PayloadError: If the received factors do not fit this client's model, or the server requests parts that the
            method does not train or does not send.
        StaleCacheError: If the client's cache does not contain what the server assumes; nothing was spent.
        LimitError: If the run exceeds this client's limits; nothing was spent.
        ConfigError: If the method does not support the run's settings, or a secure sum is too coarse for the noise or
            the clipping norm; nothing was spent.
        ReplayedMessageError: If the message was charged before; nothing was spent.
        BudgetExceededError: If the round's steps would exceed this client's budget; nothing was spent.
        DataError: If the client has no examples; nothing was spent.
        RunError: If this client's personal factors are missing or cannot be stored; nothing was spent.
    """
    started = time.perf_counter()
    identity.limits.check(config)
    check_run(config)
    config = client_config(config, identity.partition_id)
    if not 1 <= task.server_round <= config.train.rounds:
        raise PayloadError(f"server_round = {task.server_round} is invalid: expected 1 to {config.train.rounds}.")
    method = build_run_method(config)
    _check_parts(config, method, task)
    received = received_adapter(config, identity, task, factors, RecordDict() if state is None else state)
    personal = personal_path(identity, task.account) if method.traits.personal else None
    if personal:
        check_writable(personal, identity)
    check_rounding(config, received, task.server_round)
    data = load_client_data(config, identity.partition_id)
    if not len(data.examples):
        raise DataError(f"client {identity.partition_id} has no examples: at least 1 is needed to take part.")
    warn_unusual_settings(config, identity.partition_id, len(data.examples))
    report, trained = _train(config, identity, task, received, data, message_id)
    if personal:
        save_personal_factors(personal, trained, method.traits.personal)
        evaluation = evaluate_personal_model(config) if task.evaluate else None
        if evaluation is not None:
            report = replace(report, loss=evaluation.loss, metrics=evaluation.metrics)
    report = replace(report, seconds=time.perf_counter() - started, server_round=task.server_round)
    if config.federation.weighting == "uniform":
        report = train_messages.hide_counts(report)
    return train_messages.train_reply(report, payload.pack(trained, task.uplink))


def _check_parts(config: Config, method: Method, task: TrainTask) -> None:
    """Check that the method trains and sends what the server requests, in this round or, after skipped ones, before."""
    for number in range(task.server_round, 0, -1):
        if task.trains <= trained_parts(method, config, number) and task.uplink <= sent_parts(method, config, number):
            return
    allowed = trained_parts(method, config, task.server_round)
    if not task.trains <= allowed:
        raise PayloadError(
            f"server requests training of {sorted(task.trains)}: method and train.head allow {sorted(allowed)}; check "
            "that server and clients run the same configuration."
        )
    raise PayloadError(
        f"server requests {sorted(task.uplink)} from this client: with this method a client sends at most "
        f"{sorted(sent_parts(method, config, task.server_round))}; check that server and clients run the same "
        "configuration."
    )


def _train(
    config: Config, identity: ClientIdentity, task: TrainTask, received: Adapter, data: ClientData, message_id: str
) -> tuple[ClientReport, Adapter]:
    """Train as the configured privacy requires; return the report, and what may leave this client."""
    if config.privacy.name == "dp_sgd":
        report = _train_dp_sgd(config, identity, task, received, data, message_id)
        return report, peft_model.read(load_model(config))
    if config.privacy.name == "client_level":
        report = _train_for_client_level(config, identity, task, received, data, message_id)
        update = clipped_update(received, peft_model.read(load_model(config)), task.uplink, config)
        if config.privacy.noise_share:
            mark_released(identity, data.fingerprint, message_id)
        return report, update
    report = _prepare_without_noise(config, identity, task, received, data)()
    return report, peft_model.read(load_model(config))


def _train_dp_sgd(
    config: Config, identity: ClientIdentity, task: TrainTask, adapter: Adapter, data: ClientData, message_id: str
) -> ClientReport:
    # Loads Opacus, which rounds without DP-SGD do not need.
    from fedsvd.runtime.private_round import prepare_round, round_mechanism, train_privately

    # What can fail for a reason known beforehand comes before the charge.
    num_examples = len(data.examples)
    peft_model.write(load_model(config), adapter)
    prepared = prepare_round(config, task.server_round, task.trains)
    losses, widths = per_example_losses(data, config), padded_widths(data, config.model.max_length)
    charge = charge_round(config, identity, data.fingerprint, num_examples, task.server_round, message_id)
    spend = charge.spend
    mechanism = round_mechanism(config, spend)
    statistics = train_privately(config, prepared, losses, num_examples, mechanism, widths=widths)
    mark_released(identity, data.fingerprint, message_id)
    return ClientReport(
        identity.partition_id,
        num_examples,
        0.0,
        charge.epsilon,
        spend.noise_multiplier,
        spend.sample_rate,
        charge.steps,
        clipped_share=statistics.clipped_share if statistics else None,
        mean_grad_norm=statistics.mean_grad_norm if statistics else None,
    )


def _prepare_without_noise(
    config: Config, identity: ClientIdentity, task: TrainTask, adapter: Adapter, data: ClientData
) -> Callable[[], ClientReport]:
    """Load what training without noise needs, and return the function that trains."""
    num_examples = len(data.examples)
    model = load_model(config)
    peft_model.write(model, adapter)
    train = partial(
        train_plain,
        model,
        prepare_training(model, task.trains, config.train, task.server_round)[0],
        per_example_losses(data, config),
        poisson_batches(
            num_examples,
            example_sample_rate(config.train, num_examples),
            config.train.local_steps,
            _round_generator(config.seed, task.server_round, identity.partition_id),
        ),
        config.train.clip_grad_norm,
        round_maps(config, model, task.trains),
        batch_limit(config),
        example_lengths(data),
    )

    def report() -> ClientReport:
        loss = train()
        return ClientReport(identity.partition_id, num_examples, 0.0, train_loss=loss if loss == loss else None)

    return report


def _train_for_client_level(
    config: Config, identity: ClientIdentity, task: TrainTask, adapter: Adapter, data: ClientData, message_id: str
) -> ClientReport:
    """Train without noise, after a charge for the noise that `clipped_update` or the server adds.

    If the server adds the noise, the whole run is charged once, and has been since the server queried this client: it
    costs every client the same, drawn or not. With ``privacy.noise_share``, no clients are drawn, and each contribution
    is charged by itself.
    """
    if not task.account:
        raise PayloadError("train message has no account: privacy=client_level requires one.")
    check_model(config)
    train = _prepare_without_noise(config, identity, task, adapter, data)
    if config.privacy.noise_share:
        charge = charge_shared_noise(config, identity, data.fingerprint, task.account, task.server_round, message_id)
    else:
        charge = charge_whole_run(config, identity, data.fingerprint, task.account)
    return replace(
        train(),
        train_loss=None,
        epsilon=charge.epsilon,
        noise_multiplier=charge.spend.noise_multiplier,
        sample_rate=charge.spend.sample_rate,
        steps=charge.steps,
    )


def _round_generator(seed: int, server_round: int, partition_id: int) -> torch.Generator:
    """Return one random stream per client and round, so that a resumed run draws the same batches."""
    return torch.Generator().manual_seed((seed * 1_000_003 + server_round) * 1_000_003 + partition_id)

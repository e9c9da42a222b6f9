"""Bounds on the numbers of an honest client's reply; a reply beyond them is an error or an attack."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fedsvd.config import Config, TrainConfig
from fedsvd.errors import DivergedUpdateError, PayloadError, PrivacyError
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.privacy.accounting import calibrate
from fedsvd.privacy.clipping_statistics import GRADIENT_NOISE_FACTOR
from fedsvd.privacy.plan import example_sample_rate
from fedsvd.training.schedule import learning_rate
from fedsvd.wire.train_messages import ClientReport

# Number of standard deviations that a normal random variable exceeds with probability below 1e-14.
TAIL_STDS = 8.0
# Largest step of Adam in one coordinate, in units of the learning rate: (1 - β₁) / √(1 - β₂) (Kingma and Ba 2015,
# arXiv 1412.6980, Section 2.1), with the default β₁ and β₂ of PyTorch.
MAX_ADAM_STEP = 0.1 / math.sqrt(0.001)


def check_report(report: ClientReport, config: Config, earlier: int | None) -> None:
    """Check that a report's data set size is plausible and its DP-SGD parameters fit the run.

    Args:
        report: The client's report.
        config: The run's configuration.
        earlier: The number of examples in the client's first report of this run, if any.

    Raises:
        PayloadError: If a number is invalid.
    """
    n, maximum = report.num_examples, config.federation.max_num_examples
    if n is not None and n > maximum:
        raise PayloadError(f"num_examples = {n} exceeds federation.max_num_examples = {maximum}.")
    if n is not None and earlier is not None and n != earlier:
        raise PayloadError(f"num_examples = {n} differs from the earlier {earlier}: expected the same in each round.")
    if config.privacy.name != "dp_sgd":
        return
    if n is not None and report.sample_rate is not None:
        expected = example_sample_rate(config.train, n)
        if not math.isclose(report.sample_rate, expected, rel_tol=1e-6):
            raise PayloadError(f"sample_rate = {report.sample_rate} is invalid: expected {expected} for {n} examples.")
    largest = max_noise_multiplier(config)
    if report.noise_multiplier is not None and report.noise_multiplier > largest:
        raise PayloadError(f"noise_multiplier = {report.noise_multiplier} is invalid: expected at most {largest:.4g}.")


def max_noise_multiplier(config: Config) -> float:
    """Return an upper bound on any client's noise multiplier.

    It is that of a client whose batches are its whole data set, or of the sample rate that all clients have, calibrated
    with the looser accountant (RDP).
    """
    privacy, train = config.privacy, config.train
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier * (1 + 1e-6)
    try:
        rate, steps = train.sample_rate or 1.0, train.num_rounds * train.local_steps
        return calibrate(privacy.target_epsilon, privacy.target_delta, rate, steps, "rdp")
    except PrivacyError:
        return math.inf


def check_update_norm(
    parts: Mapping[Part, Mapping[str, Tensor]],
    before: Adapter,
    report: ClientReport,
    config: Config,
    server_round: int,
    stretch: float = 1.0,
    noise_std: float = 0.0,
) -> None:
    """Check that an update's norm is possible, given clipping, noise and learning rate.

    Args:
        parts: The received parts.
        before: The adapter that the client started from.
        report: The client's report.
        config: The run's configuration.
        server_round: 1-based.
        stretch: See `max_update_norm`.
        noise_std: Standard deviation of noise in each entry that ``federation.max_reply_norm`` does not cover.

    Raises:
        DivergedUpdateError: If the norm exceeds the bound.
    """
    update_square = start_square = torch.zeros((), dtype=torch.float64, device=before.device)
    size = 0
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            start = before.part(part)[name].double()
            update_square = update_square + (tensor.double() - start).square().sum()
            start_square = start_square + start.square().sum()
            size += tensor.numel()
    norm = math.sqrt(float(update_square))
    allowed = config.federation.max_reply_norm + noise_std * (math.sqrt(size) + TAIL_STDS)
    # With shared noise, the divisor of a step does not follow from the size of a client's data.
    if config.privacy.name == "dp_sgd" and not config.privacy.noise_share:
        start_norm = math.sqrt(float(start_square))
        allowed = min(allowed, max_update_norm(report, config, server_round, size, start_norm, parts, stretch))
    if not norm <= allowed:
        raise DivergedUpdateError(
            f"update norm {norm:.4g} is too large: the settings of this round allow at most {allowed:.4g}."
        )


def max_update_norm(
    report: ClientReport,
    config: Config,
    server_round: int,
    size: int,
    start_norm: float,
    parts: Collection[Part] = frozenset({"B"}),
    stretch: float = 1.0,
) -> float:
    """Return an upper bound on the norm of one round's update under DP-SGD.

    An honest client exceeds it with probability below 1e-12.

    A step moves the parameters by ``η (Σ clip(gᵢ) + σ C z) / L``, where each clipped gradient has norm at most C, z is
    a vector of ``size`` standard normal numbers, and L is the expected batch size. T steps together move them by at
    most ``η C (N + σ √T ‖z‖) / L`` for N examples in all batches. Momentum μ multiplies this by at most
    ``1 / (1 − μ)``. Maps of the noised sum, as with ``privacy.standardize_inputs``, multiply it by at most their
    spectral norm. If head and factors have different learning rates, η is the larger one of the trained parts; if
    they are clipped separately, their joint norm is still at most C. AdamW moves each coordinate by at most
    `MAX_ADAM_STEP` learning rates per step. Weight decay adds its fraction of the parameters.

    Args:
        report: The client's report, after `check_report`. If ``num_examples``, ``sample_rate`` or ``noise_multiplier``
            is missing, the value that gives the loosest bound is used.
        config: The run's configuration.
        server_round: 1-based.
        size: Number of values in the update.
        start_norm: Norm of the parameters before the round.
        parts: The trained parts.
        stretch: Upper bound on the spectral norm of the maps of the noised sum, see `fedsvd.runtime.round_maps`.
    """
    train, steps = config.train, config.train.local_steps
    rate = max(learning_rate(train, server_round, of_head=part == "head") for part in parts)
    if train.optimizer == "adamw":
        update = rate * MAX_ADAM_STEP * steps * math.sqrt(size)
    else:
        batch, examples = _batch_and_examples(report, train)
        sigma = report.noise_multiplier if report.noise_multiplier is not None else max_noise_multiplier(config)
        noise = sigma * GRADIENT_NOISE_FACTOR * math.sqrt(steps) * (math.sqrt(size) + TAIL_STDS)
        update = rate * config.privacy.max_grad_norm * stretch * (examples + noise) / batch / (1 - train.momentum)
    decay = rate * train.weight_decay * steps / (1 - train.momentum)
    # The added terms cover the float32 rounding of each parameter in each step.
    return (update + decay * (start_norm + update)) * (1 + 1e-3) + 1e-6 * start_norm * steps


def _batch_and_examples(report: ClientReport, train: TrainConfig) -> tuple[float, float]:
    """Return a client's expected batch size, and an upper bound on the examples in all batches of a round."""
    steps = train.local_steps
    if report.num_examples is not None and report.sample_rate is not None:
        batch = report.sample_rate * report.num_examples
        expected = steps * batch
    elif train.sample_rate is not None:
        # Relative to the divisor, the noise is largest for one example, which is in each batch at most once.
        return train.sample_rate, float(steps)
    else:
        batch, expected = 1.0, float(steps * train.batch_size)
    # Bernstein's bound on a sum of independent Bernoulli variables.
    return batch, expected + TAIL_STDS * math.sqrt(expected) + TAIL_STDS**2

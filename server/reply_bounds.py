"""What an honest client's numbers can be: beyond that, a reply is a mistake or an attack."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsvd.config import Config
from fedsvd.errors import DivergedUpdateError, PayloadError, PrivacyError
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.privacy.accounting import calibrate
from fedsvd.privacy.clipping_statistics import GRADIENT_NOISE_FACTOR
from fedsvd.privacy.plan import poisson_rate
from fedsvd.training.loop import learning_rate
from fedsvd.wire.train_messages import ClientReport

# A normal number lies within so many standard deviations of its mean, but for a chance of 1e-14.
TAIL_STDS = 8.0
# Adam's largest step in one coordinate, in units of the learning rate: (1 - β₁) / √(1 - β₂) (Kingma and Ba 2015,
# arXiv 1412.6980, Section 2.1) with torch's β.
MAX_ADAM_STEP = 0.1 / math.sqrt(0.001)


def check_report(report: ClientReport, config: Config, earlier: int | None) -> None:
    """Refuse a size of data that cannot be, and DP-SGD that is not the run's.

    Args:
        report: What the client says.
        config: The run's.
        earlier: The size that the same client named first in this run.

    Raises:
        PayloadError: What is wrong, and what was to be expected.
    """
    n, most = report.num_examples, config.federation.max_num_examples
    if n is not None and n > most:
        raise PayloadError(f"num_examples = {n} is more than federation.max_num_examples = {most}.")
    if n is not None and earlier is not None and n != earlier:
        raise PayloadError(f"num_examples = {n}, but it was {earlier} before; data do not change within a run.")
    if config.privacy.name != "dp_sgd":
        return
    if n is not None and report.sample_rate is not None:
        expected = poisson_rate(n, config.train.batch_size)
        if not math.isclose(report.sample_rate, expected, rel_tol=1e-6):
            raise PayloadError(f"sample_rate = {report.sample_rate}; with {n} examples it is {expected}.")
    largest = max_noise_multiplier(config)
    if report.noise_multiplier is not None and report.noise_multiplier > largest:
        raise PayloadError(f"noise_multiplier = {report.noise_multiplier}; this run needs at most {largest:.4g}.")


def max_noise_multiplier(config: Config) -> float:
    """Return the noise multiplier of a client whose every batch is its whole data, counted in the coarser way."""
    privacy, train = config.privacy, config.train
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier * (1 + 1e-6)
    try:
        return calibrate(privacy.target_epsilon, privacy.target_delta, 1.0, train.num_rounds * train.local_steps, "rdp")
    except PrivacyError:
        return math.inf


def check_update_norm(
    parts: Mapping[Part, Mapping[str, Tensor]], before: Adapter, report: ClientReport, config: Config, server_round: int
) -> None:
    """Refuse an update that is longer than clipping, noise and learning rate allow; raises `DivergedUpdateError`."""
    squares = lengths = torch.zeros((), dtype=torch.float64, device=before.device)
    size = 0
    for part, named in parts.items():
        for name, tensor in named.items():
            start = before.part(part)[name].double()
            squares = squares + (tensor.double() - start).square().sum()
            lengths = lengths + start.square().sum()
            size += tensor.numel()
    norm, allowed = math.sqrt(float(squares)), config.federation.max_reply_norm
    if config.privacy.name == "dp_sgd":
        allowed = min(allowed, max_update_norm(report, config, server_round, size, math.sqrt(float(lengths))))
    if not norm <= allowed:
        raise DivergedUpdateError(f"its update has norm {norm:.4g}; this round's settings allow {allowed:.4g} at most.")


def max_update_norm(report: ClientReport, config: Config, server_round: int, size: int, length: float) -> float:
    """Bound the norm of a round's update under DP-SGD; an honest client exceeds it with a chance below 1e-12.

    A step moves the parameters by ``η (Σ clip(gᵢ) + σ C z) / L``, with at most C for each example of the batch and z a
    vector of ``size`` normal numbers, so that T steps come to ``η C (N + σ √T ‖z‖) / L`` at most: N examples in all
    batches together, L the expected batch. Momentum μ multiplies that by ``1 / (1 − μ)`` at most; AdamW moves each
    coordinate by `MAX_ADAM_STEP` learning rates a step at most. Weight decay adds its share of the parameters.

    Args:
        report: With the client's ``num_examples``, ``sample_rate`` and ``noise_multiplier``, which `check_report` has
            passed; unknown ones count as what bounds least.
        config: The run's.
        server_round: 1-based.
        size: How many numbers the update has.
        length: Norm of the parameters before.
    """
    train, rate = config.train, learning_rate(config.train, server_round)
    steps = train.local_steps
    if train.optimizer == "adamw":
        moved = rate * MAX_ADAM_STEP * steps * math.sqrt(size)
    else:
        known = report.num_examples is not None and report.sample_rate is not None
        batch = report.sample_rate * report.num_examples if known else 1.0  # type: ignore[operator]
        expected = steps * (batch if known else train.batch_size)
        # Bernstein's bound for a sum of coins.
        examples = expected + TAIL_STDS * math.sqrt(expected) + TAIL_STDS**2
        sigma = report.noise_multiplier if report.noise_multiplier is not None else max_noise_multiplier(config)
        noise = sigma * GRADIENT_NOISE_FACTOR * math.sqrt(steps) * (math.sqrt(size) + TAIL_STDS)
        moved = rate * config.privacy.max_grad_norm * (examples + noise) / batch / (1 - train.momentum)
    decayed = rate * train.weight_decay * steps / (1 - train.momentum)
    # Float32 rounds each parameter in each step.
    return (moved + decayed * (length + moved)) * (1 + 1e-3) + 1e-6 * length * steps

"""The private part of a client's round: one code for the client and for the audit of it."""

from __future__ import annotations

from collections.abc import Collection

from fedsvd.config import Config
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Part
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.canaries import Canaries
from fedsvd.privacy.clipping_statistics import ClippingStatistics
from fedsvd.privacy.dp_sgd import DPSGD, LossFunction, train_dp_sgd
from fedsvd.privacy.noise_share import client_noise_multiplier
from fedsvd.privacy.randomness import Randomness, SecureRandomness, TorchRandomness
from fedsvd.runtime.model import load_model
from fedsvd.training.loop import make_optimizer
from fedsvd.training.per_example_gradients import choose_grad_sample_mode


def round_mechanism(config: Config, spend: Spend) -> DPSGD:
    """Return the mechanism of one round that is charged as ``spend``."""
    return DPSGD(
        client_noise_multiplier(spend.noise_multiplier, config),
        config.privacy.max_grad_norm,
        spend.sample_rate,
        spend.steps,
        config.train.physical_batch_size,
        # One divisor for all, so that one example moves the secure sum by as much wherever it is.
        float(config.train.batch_size) if config.privacy.noise_share else None,
        # A share of the noise protects nothing that leaves outside of the sum.
        config.privacy.clipping_statistics and not config.privacy.noise_share,
    )


def secret_randomness(config: Config) -> Randomness:
    """Return what batches and noise are drawn from; the seed has no part in it.

    Amplification by sampling counts on a sample that nobody else can know.
    """
    return SecureRandomness() if config.privacy.secure_random else TorchRandomness()


def train_privately(
    config: Config,
    server_round: int,
    parts: Collection[Part],
    losses: LossFunction,
    num_examples: int,
    mechanism: DPSGD,
    canaries: Canaries | None = None,
) -> ClippingStatistics | None:
    """Train parts of the process's model by DP-SGD, from what it holds.

    Args:
        config: The run.
        server_round: 1-based.
        parts: What to train; all of it is clipped together.
        losses: As `fedsvd.privacy.dp_sgd.train_dp_sgd` has it.
        num_examples: Size of the client's data.
        mechanism: Noise, clipping, sampling and steps of this round.
        canaries: Only an audit has some.

    Returns:
        How much was clipped, where the mechanism measures it.

    Raises:
        PrivacyError: As `fedsvd.privacy.dp_sgd.train_dp_sgd`.
    """
    model = load_model(config)
    trained = peft_model.set_trainable(model, parts)
    return train_dp_sgd(
        model,
        make_optimizer(trained, config.train, server_round),
        losses,
        num_examples,
        mechanism,
        secret_randomness(config),
        choose_grad_sample_mode(model, config.train.grad_sample_mode),
        canaries,
    )

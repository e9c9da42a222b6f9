"""The differentially private part of a client's round, shared by the client and its audit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import peft
import torch
from torch import nn

from fedsvd.config import Config
from fedsvd.lora.adapter import Part
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.canaries import Canaries
from fedsvd.privacy.clipping_statistics import ClippingStatistics
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.grad_sample_modes import GradSampleMode, LossFunction, opacus_hooks
from fedsvd.privacy.gradient_maps import GradientMap
from fedsvd.privacy.noise_share import client_noise_multiplier
from fedsvd.privacy.randomness import Randomness, SecureRandomness, TorchRandomness, secret_masks
from fedsvd.runtime.losses import batch_limit
from fedsvd.runtime.model import check_model, load_model
from fedsvd.runtime.round_maps import round_maps
from fedsvd.runtime.round_parts import prepare_training
from fedsvd.training.per_example_gradients import choose_grad_sample_mode


def round_mechanism(config: Config, spend: Spend) -> DPSGD:
    """Return the DP-SGD mechanism of one round that is charged as ``spend``."""
    return DPSGD(
        client_noise_multiplier(spend.noise_multiplier, config),
        config.privacy.max_grad_norm,
        spend.sample_rate,
        spend.steps,
        batch_limit(config),
        # All clients use the same divisor, so that one example has the same effect on the secure sum at each of them.
        float(config.train.batch_size) if config.privacy.noise_share else None,
        # Nothing is sent outside of a secure sum: the spread of the noise would tell the number of examples.
        config.privacy.clipping_statistics and not config.federation.secure_aggregation,
        config.privacy.head_clipping_share,
    )


def secret_randomness(config: Config) -> Randomness:
    """Return the source of randomness for batches and noise, independent of the seed.

    Privacy amplification by sampling assumes that nobody else knows the sample.
    """
    return SecureRandomness() if config.privacy.secure_random else TorchRandomness()


@dataclass(frozen=True)
class PreparedRound:
    """What a round needs besides private data, loaded and checked before the round is charged.

    Attributes:
        model: The process's model, with gradients enabled for the trained parameters.
        optimizer: The optimizer of these parameters.
        head: Those of them that belong to the head.
        grad_sample_mode: How per-example gradients are computed.
        maps: The maps of gradients.
    """

    model: peft.PeftModel
    optimizer: torch.optim.Optimizer
    head: Sequence[nn.Parameter]
    grad_sample_mode: GradSampleMode
    maps: Sequence[GradientMap]


def prepare_round(config: Config, server_round: int, parts: Collection[Part]) -> PreparedRound:
    """Load and check what a round needs, given the current parameters of the process's model.

    Args:
        config: The configuration of the run.
        server_round: Round number, 1-based.
        parts: The parts to train.

    Raises:
        PrivacyError: Per-example gradients of the model cannot be computed as configured.
        ConfigError: See `check_model`.
        ModelError: See `check_model`.
        DataError: The public text cannot be used.
    """
    check_model(config)
    model = load_model(config)
    optimizer, head = prepare_training(model, parts, config.train, server_round)
    mode = choose_grad_sample_mode(model, config.train.grad_sample_mode)
    return PreparedRound(model, optimizer, head, mode, round_maps(config, model, parts))


def train_privately(
    config: Config,
    prepared: PreparedRound,
    losses: LossFunction,
    num_examples: int,
    mechanism: DPSGD,
    canaries: Canaries | None = None,
    widths: Sequence[int] = (),
) -> ClippingStatistics | None:
    """Train the process's model with DP-SGD, as prepared.

    Args:
        config: The configuration of the run.
        prepared: What `prepare_round` returned for the round.
        losses: See `fedsvd.privacy.dp_sgd.train_dp_sgd`.
        num_examples: Number of the client's examples.
        mechanism: Noise, clipping, sampling and steps of this round.
        canaries: Canaries of an audit; None in training.
        widths: Number of tokens of each example with padding, see `fedsvd.runtime.losses.padded_widths`.

    Returns:
        Clipping statistics, if the mechanism measures them.

    Raises:
        PrivacyError: See `fedsvd.privacy.dp_sgd.train_dp_sgd`.
    """
    if prepared.grad_sample_mode is opacus_hooks and config.train.physical_batch_size == "auto":
        # A failed try leaves states in Opacus' hooks.
        mechanism = replace(mechanism, physical_batch_size=DPSGD.physical_batch_size)
    with secret_masks() if config.model.lora_dropout else nullcontext():
        return train_dp_sgd(
            prepared.model,
            prepared.optimizer,
            losses,
            num_examples,
            mechanism,
            secret_randomness(config),
            prepared.grad_sample_mode,
            canaries,
            prepared.head,
            prepared.maps,
            widths,
        )

"""Checks that rounding to the resolution of a secure sum does not weaken a run's guarantee."""

from __future__ import annotations

from collections.abc import Collection

import torch

from fedsvd.config import Config
from fedsvd.errors import ConfigError
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods import build_run_method
from fedsvd.methods.aggregate import flatten_parts
from fedsvd.privacy.noise_share import client_noise_multiplier
from fedsvd.privacy.plan import calibrate_run
from fedsvd.runtime.round_parts import sent_parts
from fedsvd.secagg.rounding import MIN_NOISE_STD, resolution, rounding_norm
from fedsvd.training.schedule import learning_rate

# Of privacy.max_update_norm, what rounding may take: it is noise of the server that protects nothing.
_MAX_ROUNDED_SHARE = 0.1


def check_rounding(config: Config, adapter: Adapter, first_round: int) -> None:
    """Check the rest of a run, before anything is spent.

    Server and clients check it with the factors that they have. Nothing here depends on private data.

    Args:
        config: The configuration of the run.
        adapter: The factors before the first of these rounds.
        first_round: The round that follows, 1-based.

    Raises:
        ConfigError: One client's share of the noise, or the clipping norm, is too small for the resolution.
        PrivacyError: No noise multiplier satisfies the budget.
    """
    if config.privacy.name == "none" or not config.federation.secure_aggregation:
        return
    method, rounds = build_run_method(config), range(1, config.train.rounds + 1)
    sent = {sent_parts(method, config, number) for number in rounds}
    if config.privacy.noise_share:
        for part in sorted(frozenset[Part]().union(*sent)):
            _check_noise_share(config, adapter, part, rounds[first_round - 1 :])
    elif config.privacy.name == "client_level":
        for parts in sent:
            clipping_norm(config, adapter, parts)


def clipping_norm(config: Config, start: Adapter, parts: Collection[Part]) -> float:
    """Return the norm to which a client clips its update, so that what it sends has at most ``max_update_norm``.

    It is smaller than that only where the server can neither clip the update again nor see it before it is rounded.

    Args:
        config: The configuration of the run.
        start: The adapter that the client starts from.
        parts: The parts that it sends.

    Raises:
        ConfigError: Rounding can add more than a tenth of ``max_update_norm``.
    """
    privacy = config.privacy
    if privacy.noise_share or not config.federation.secure_aggregation:
        return privacy.max_update_norm
    tensors = flatten_parts(start, parts)
    norm = torch.stack([torch.linalg.vector_norm(tensor.double()).cpu() for tensor in tensors]).norm().item()
    size = sum(tensor.numel() for tensor in tensors)
    added = rounding_norm(norm, size, privacy.max_update_norm)
    if added > _MAX_ROUNDED_SHARE * privacy.max_update_norm:
        raise ConfigError(
            f"privacy.max_update_norm = {privacy.max_update_norm:g} is too small for federation.secure_aggregation = "
            f"True: rounding can add {added:.2g} to the norm of {size} changed values, which the server cannot "
            f"clip again. Raise it to {added / _MAX_ROUNDED_SHARE:.2g} or more, or share the noise "
            "(privacy.noise_share=true), which each client adds before it rounds."
        )
    return privacy.max_update_norm - added


def _check_noise_share(config: Config, adapter: Adapter, part: Part, rounds: range) -> None:
    """Check one client's share of the noise in the values of a part that it sends.

    Raises:
        ConfigError: Rounding each client's values would not be post-processing of the noisy sum.
    """
    privacy, train = config.privacy, config.train
    # All clients that share the noise have the same noise multiplier, whatever their number of examples.
    std = client_noise_multiplier(calibrate_run(config, 1).noise_multiplier, config)
    remedy = "Raise privacy.max_update_norm"
    if privacy.name == "client_level":
        std *= privacy.max_update_norm
    else:
        rates = [learning_rate(train, number, of_head=part == "head") for number in rounds]
        std *= min(rates, default=train.learning_rate) * privacy.max_grad_norm / train.batch_size
        key = "head_learning_rate" if part == "head" and train.head_learning_rate else "learning_rate"
        remedy = f"Raise train.{key} (train.lr_scheduler_type lowers it), or lower train.batch_size"
    step = resolution(max((float(tensor.abs().max()) for tensor in adapter.part(part).values()), default=0.0))
    if std < MIN_NOISE_STD * step:
        raise ConfigError(
            f"privacy.noise_share = True is not possible: one client's share of the noise has a standard deviation of "
            f"{std:.2g} in the values of {part} that it sends, and these have a resolution of {step:.2g}. Rounding "
            f"costs no privacy only above {MIN_NOISE_STD:g} times that. {remedy}, or set privacy.noise_share=false."
        )

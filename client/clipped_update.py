"""A client's update under client-level privacy, clipped and with its share of the noise."""

from __future__ import annotations

from collections.abc import Collection

from fedsvd.config import Config
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods.aggregate import flatten_parts, unflatten_parts
from fedsvd.privacy.client_level import add_noise, clip_update, run_spend
from fedsvd.privacy.noise_share import client_noise_multiplier
from fedsvd.runtime.rounding import clipping_norm


def clipped_update(before: Adapter, after: Adapter, parts: Collection[Part], config: Config) -> Adapter:
    """Clip the joint norm of the update of all sent parts to ``privacy.max_update_norm``, also after rounding.

    With ``privacy.noise_share``, this client's share of the noise is added, so that the secure sum has all of it.

    Args:
        before: The adapter that the client started from.
        after: The trained adapter.
        parts: The parts that are sent.
        config: The configuration of the run.

    Returns:
        What may leave this client: ``before`` plus the update, in the parts that are sent.

    Raises:
        ConfigError: See `fedsvd.runtime.rounding.clipping_norm`.
    """
    trained = [tensor.double() for tensor in flatten_parts(after, parts)]
    # Of a model on several devices, the received factors and the trained ones can be on different ones.
    old = [start.double().to(new.device) for start, new in zip(flatten_parts(before, parts), trained, strict=True)]
    update = [new - start for new, start in zip(trained, old, strict=True)]
    clipped = clip_update(update, clipping_norm(config, before, parts))
    if config.privacy.noise_share:
        from fedsvd.runtime.private_round import secret_randomness

        sigma = run_spend(config.privacy, config.train, config.federation).noise_multiplier
        clipped = add_noise(
            clipped, client_noise_multiplier(sigma, config) * config.privacy.max_update_norm, secret_randomness(config)
        )
    return unflatten_parts(after, parts, [start + delta for start, delta in zip(old, clipped, strict=True)])

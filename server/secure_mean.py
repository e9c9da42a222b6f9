"""The mean in a secure sum, as the reply that the server step takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fedsvd.config import Config
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods.aggregate import Reply
from fedsvd.runtime.round_maps import map_mean, server_maps_mean
from fedsvd.wire import payload
from server.secure_grid import SecureSum


def unpack_mean(result: SecureSum, parts: Collection[Part], like: Adapter) -> Reply:
    """Return the mean in a secure sum as one reply, in float64.

    Args:
        result: The decoded sum.
        parts: The parts that each client has sent.
        like: An adapter with the shapes of these parts.
    """
    return Reply(0, max(1, round(result.weight)), payload.split_vector(result.mean, parts, like, like.device))


def with_server_maps(mean: Reply, before: Adapter, config: Config) -> Reply:
    """Return the mean after the maps of the noised sum, if the clients have left them to the server.

    Args:
        mean: The mean of what the clients sent.
        before: The adapter that they started from.
        config: The run's configuration.

    Raises:
        DataError: The public text of a map cannot be used.
    """
    return replace(mean, parts=map_mean(config, before, mean.parts)) if server_maps_mean(config) else mean

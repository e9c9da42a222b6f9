"""Bounds on a secure sum: what holds for the mean of valid updates, since single masked updates cannot be checked."""

from __future__ import annotations

from fedsvd.config import Config
from fedsvd.errors import PayloadError
from fedsvd.lora.adapter import Adapter
from fedsvd.methods.aggregate import Reply
from fedsvd.privacy.noise_share import equal_weights
from fedsvd.runtime.round_maps import max_stretch
from fedsvd.wire.train_messages import ClientReport
from server.reply_bounds import check_update_norm
from server.secure_grid import SecureSum


def secure_sum_problem(result: SecureSum, mean: Reply, before: Adapter, config: Config, server_round: int) -> str:
    """Return why a secure sum cannot be one of valid updates; an empty string if it can be.

    The norm of a weighted mean is at most the largest norm of an update, and the sum of the weights at most the number
    of clients times the largest weight. The numbers are finite: they are decoded from integers, modulo 2⁶⁴.

    Args:
        result: The decoded sum.
        mean: The mean in it, by part.
        before: The adapter that the clients started from.
        config: The run's configuration.
        server_round: 1-based.
    """
    try:
        _check_weight(result, config)
        # No single client's numbers are known, so the loosest bound that the settings imply is used.
        stretch = max_stretch(config, frozenset(mean.parts))
        check_update_norm(mean.parts, before, ClientReport(0, None, 0.0), config, server_round, stretch)
    except PayloadError as error:
        # The sum has no noise yet under client-level privacy, and its weight is the number of clients.
        details = "." if config.privacy.hides_sampling else f": {error}"
        return (
            "the secure sum is refused, because an update in it exceeds federation.max_reply_norm, "
            f"federation.max_num_examples or what the settings allow{details} Single updates are hidden, so that no "
            "client can be named. If it happens again, decrease train.learning_rate, or leave out clients with "
            "federation.participants."
        )
    return ""


def _check_weight(result: SecureSum, config: Config) -> None:
    """Check the sum of the weights, each of which is 1 or a number of examples.

    Raises:
        PayloadError: If it is not possible.
    """
    largest = 1 if equal_weights(config) else config.federation.max_num_examples
    least, most = result.contributors, result.contributors * largest
    if not least <= result.weight <= most:
        expected = f"{least}" if least == most else f"{least} to {most}"
        raise PayloadError(
            f"the weights of {result.contributors} clients add up to {result.weight:.12g}: expected {expected}."
        )

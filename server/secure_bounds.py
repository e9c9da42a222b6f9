"""Bounds on a secure sum: what holds for the mean of valid updates, since single masked updates cannot be checked."""

from __future__ import annotations

from fedsvd.config import Config
from fedsvd.errors import DivergedError, PayloadError
from fedsvd.lora.adapter import Adapter
from fedsvd.methods.aggregate import Reply
from fedsvd.privacy.noise_share import equal_weights
from fedsvd.runtime.round_maps import max_stretch
from fedsvd.wire.train_messages import ClientReport
from server.reply_bounds import check_update_norm
from server.secure_grid import SecureSum


def secure_sum_problem(
    result: SecureSum, mean: Reply, before: Adapter, config: Config, server_round: int, noise_std: float
) -> str:
    """Return why a secure sum cannot be one of valid updates; an empty string if it can be.

    The norm of a weighted mean is at most the largest norm of an update, and the sum of the weights at most the number
    of clients times the largest weight. The numbers are finite: they are decoded from integers, modulo 2⁶⁴.

    Args:
        result: The decoded sum.
        mean: The mean in it, by part.
        before: The adapter that the clients started from.
        config: The run's configuration.
        server_round: 1-based.
        noise_std: Standard deviation of the noise in each entry of the mean that clients add besides their updates.

    Raises:
        DivergedError: The sum is refused. Under client-level privacy, the reason is returned instead and the run
            continues: whether it ends must not depend on the clients' data.
    """
    try:
        _check_weight(result, config)
        # No single client's numbers are known, so the loosest bound that the settings imply is used.
        stretch, report = max_stretch(config, frozenset(mean.parts)), ClientReport(0, None, 0.0)
        check_update_norm(mean.parts, before, report, config, server_round, stretch, noise_std)
    except PayloadError as error:
        if config.privacy.hides_sampling:
            # Without numbers: a sum without shared noise has none yet, and its weight is the number of clients.
            return (
                "the secure sum is refused, because an update in it is not clipped, or its weight is not 1. Single "
                "updates are hidden, so that no client can be named. Check that all clients run the same version."
            )
        raise DivergedError(
            f"the secure sum of round {server_round} is refused: {error} Training has diverged, or a client is faulty "
            "(single updates are hidden, so that none can be named), and more rounds would waste privacy; decrease "
            f"train.learning_rate ({config.train.learning_rate:g}), or leave out clients with federation.participants."
        ) from None
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

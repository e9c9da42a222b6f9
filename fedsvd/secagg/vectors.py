"""Fixed-point vectors modulo 2⁶⁴, and the masks that hide them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from fedsvd.errors import DivergedError, PayloadError

logger = logging.getLogger(__name__)

# Weighted values have a resolution of 2⁻²⁴. The 39 bits above the fraction, including the sign, must hold the sum over
# all clients.
FRACTION_BITS = 24
_HEADROOM_BITS = 62


def encode(values: np.ndarray, weight: int, num_clients: int) -> np.ndarray:
    """Encode a client's values for the secure sum: weighted, in fixed point, with the weight appended.

    Args:
        values: Finite numbers, shape (n,).
        weight: Weight of the client in the mean, at least 1.
        num_clients: Maximum number of clients whose vectors are summed.

    Returns:
        The encoded vector, uint64 of shape (n + 1,).

    Raises:
        DivergedError: A weighted value is not finite, or so large that the sum over ``num_clients`` could overflow. The
            message tells neither the value nor the weight; they are logged.
    """
    weighted = np.append(values.astype(np.float64) * weight, float(weight))
    limit = 2.0 ** (_HEADROOM_BITS - FRACTION_BITS) / num_clients
    largest = np.abs(weighted).max()
    if not largest <= limit:
        # The weight is the number of examples, which the sum hides from the receiver of the error.
        logger.error("the largest entry of the update times its weight %d is %g", weight, largest)
        raise DivergedError(
            f"an entry of an update times its weight is too large, or not finite: a secure sum over {num_clients} "
            f"clients supports finite values up to {limit:g}. Lower train.learning_rate; this client's log has the "
            "numbers."
        )
    return np.rint(weighted * 2.0**FRACTION_BITS).astype(np.int64).view(np.uint64)


def decode(total: np.ndarray) -> tuple[np.ndarray, float]:
    """Decode a sum of encoded vectors into the weighted mean and the total weight.

    Returns:
        The mean, float64 of shape (n,), and the sum of the weights.

    Raises:
        PayloadError: The total weight is below 1 or too large for a valid sum, which happens if masks did not cancel.
    """
    numbers = total.view(np.int64).astype(np.float64) / 2.0**FRACTION_BITS
    weight = float(numbers[-1])
    if not 1 <= weight <= 2.0 ** (_HEADROOM_BITS - FRACTION_BITS):
        raise PayloadError(f"the secure sum has an invalid total weight of {weight:g}: its masks did not cancel.")
    return numbers[:-1] / weight, weight


def mask(key: bytes, size: int) -> np.ndarray:
    """Return ``size`` uniform numbers modulo 2⁶⁴ from a 32-byte key, which must not be used for anything else."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(8 * size)), dtype="<u8").astype(np.uint64)


def add(total: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum modulo 2⁶⁴."""
    result = total.copy()
    for other in others:
        result += other
    return result

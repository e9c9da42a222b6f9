"""Fixed-point vectors modulo 2⁶⁴, and the masks that hide them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from fedsvd.errors import PayloadError

# A weighted value is kept to 2⁻²⁴; the 39 bits before it (one for the sign) are shared by all clients' values.
FRACTION_BITS = 24
_HEADROOM_BITS = 62


def encode(values: np.ndarray, weight: int, num_clients: int) -> np.ndarray:
    """Turn a client's values into the vector that is summed: weighted, in fixed point, and its weight at the end.

    Args:
        values: Finite numbers, shape (n,).
        weight: What they count in the mean, at least 1.
        num_clients: Clients whose vectors may be summed.

    Returns:
        uint64 of shape (n + 1,).

    Raises:
        PayloadError: A value that is not finite, or so large that a sum of ``num_clients`` such could overflow.
    """
    weighted = np.append(values.astype(np.float64) * weight, float(weight))
    limit = 2.0 ** (_HEADROOM_BITS - FRACTION_BITS) / num_clients
    largest = np.abs(weighted).max()
    if not largest <= limit:
        raise PayloadError(
            f"an update times its weight {weight} reaches {largest:g}; a secure sum over {num_clients} clients takes "
            f"finite values up to {limit:g}. Lower train.learning_rate."
        )
    return np.rint(weighted * 2.0**FRACTION_BITS).astype(np.int64).view(np.uint64)


def decode(total: np.ndarray) -> tuple[np.ndarray, float]:
    """Turn a sum of encoded vectors into the weighted mean and the total weight.

    Returns:
        The mean, float64 of shape (n,), and the sum of the weights.

    Raises:
        PayloadError: A total weight below 1, as masks that did not cancel would give.
    """
    numbers = total.view(np.int64).astype(np.float64) / 2.0**FRACTION_BITS
    weight = float(numbers[-1])
    if not 1 <= weight <= 2.0 ** (_HEADROOM_BITS - FRACTION_BITS):
        raise PayloadError(f"the secure sum has a total weight of {weight:g}; its masks did not cancel.")
    return numbers[:-1] / weight, weight


def mask(key: bytes, size: int) -> np.ndarray:
    """Return ``size`` uniform numbers modulo 2⁶⁴ from a 32-byte key that is used for nothing else."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(8 * size)), dtype="<u8").astype(np.uint64)


def add(total: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum modulo 2⁶⁴."""
    result = total.copy()
    for other in others:
        result += other
    return result

"""Sources of batches and noise: a stream cipher keyed by the operating system, or torch generators.

A guarantee of differential privacy holds only if its randomness is secret: anyone who can predict the noise can
subtract it. torch's generators (Mersenne Twister on a CPU, Philox on a GPU) are fast but not designed to resist
prediction, and that of a CPU has 2³² seeds only. The default source is therefore ChaCha20 (RFC 8439), keyed by the
operating system for each round and never by an experiment's seed.

Known limitations: noise is a float32 number added to a float32 sum, not a real number. A single Box-Muller draw leaves
gaps among the floats it can reach, through which the exact sum can be recognized (Mironov 2012; Jin et al. 2021, arXiv
2112.05307). The noise is half the sum of four independent draws, which raises the work of that attack from about 2⁵³ to
2¹⁵⁹ (Holohan & Braghin 2021, arXiv 2107.10138, section 5.1). This is a countermeasure, not a proof. The time that a
draw takes is not hidden either.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

_KEY_BYTES = 32
_NONCE_BYTES = 16
# Box-Muller draws per noise value.
_NUM_DRAWS = 4
# Of the state of torch's generator on a CPU: Mersenne Twister's words of 32 bits, each in 8 bytes, after 24 others.
_STATE_START, _STATE_WORDS = 24, 624


class Randomness(Protocol):
    """A source of the batches and the noise of DP-SGD."""

    def batches(self, num_examples: int, sample_rate: float, steps: int) -> Iterator[list[int]]:
        """Yield ``steps`` Poisson batches: each example is in each batch with probability ``sample_rate``."""

    def normal(self, like: Tensor, std: float) -> Tensor:
        """Return independent samples from N(0, std²), with the shape, device and dtype of ``like``."""


class SecureRandomness:
    """A ChaCha20 key stream.

    Args:
        key: Key of 32 bytes. By default it comes from the operating system; an explicit key is for tests.

    Example:
        >>> import torch
        >>> import fedsvd
        >>> randomness = fedsvd.SecureRandomness()
        >>> list(randomness.batches(num_examples=3, sample_rate=1.0, steps=2))
        [[0, 1, 2], [0, 1, 2]]
        >>> noise = randomness.normal(like=torch.zeros(100, 100), std=2.0)
        >>> 1.9 < noise.std() < 2.1
        tensor(True)
    """

    def __init__(self, key: bytes | None = None) -> None:
        # There is one stream per key, so the counter and the nonce of RFC 8439 may start at zero.
        cipher = Cipher(ChaCha20(os.urandom(_KEY_BYTES) if key is None else key, bytes(_NONCE_BYTES)), mode=None)
        self._stream = cipher.encryptor()

    def uniform(self, count: int) -> np.ndarray:
        """Return ``count`` float64 numbers, uniform on the 2⁵³ midpoints of (0, 1) and thus never 0 or 1."""
        words = np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")
        return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def batches(self, num_examples: int, sample_rate: float, steps: int) -> Iterator[list[int]]:
        """Yield ``steps`` Poisson batches, with positions in ascending order."""
        for _ in range(steps):
            yield np.flatnonzero(self.uniform(num_examples) < sample_rate).tolist()

    def normal(self, like: Tensor, std: float) -> Tensor:
        """Return samples from N(0, std²), each half the sum of four Box-Muller draws, computed in float64."""
        count = like.numel()
        pairs = _NUM_DRAWS // 2 * count
        radius = torch.from_numpy(self.uniform(pairs)).log_().mul_(-2.0).sqrt_()
        angle = torch.from_numpy(self.uniform(pairs)).mul_(2.0 * math.pi)
        draws = torch.cat([radius * angle.cos(), radius * angle.sin()]).reshape(_NUM_DRAWS, count)
        values = draws.sum(dim=0).mul_(std / math.sqrt(_NUM_DRAWS))
        return values.to(like.device, like.dtype).reshape(like.shape)


class TorchRandomness:
    """torch's generators, seeded by the operating system: for measurements and tests, never for real data.

    A CPU's generator uses the lower 32 bits of its seed, and the batches always come from one. Who sees an update can
    try all 2³² seeds, find the one that was used, and subtract the noise.

    Args:
        seed: Seed of the generators. By default it comes from the operating system; an explicit seed is for tests.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = secrets.randbits(62) if seed is None else seed
        self._batches = torch.Generator().manual_seed(self._seed)
        self._noise: dict[torch.device, torch.Generator] = {}

    def batches(self, num_examples: int, sample_rate: float, steps: int) -> Iterator[list[int]]:
        """Yield ``steps`` Poisson batches."""
        return poisson_batches(num_examples, sample_rate, steps, self._batches)

    def normal(self, like: Tensor, std: float) -> Tensor:
        """Return samples from N(0, std²)."""
        if like.device not in self._noise:
            # Two GPUs with one seed would draw the same noise, which cancels in the difference of two layers.
            seed = self._seed + 1 + len(self._noise)
            self._noise[like.device] = torch.Generator(like.device).manual_seed(seed)
        draws = torch.randn(like.shape, generator=self._noise[like.device], device=like.device, dtype=like.dtype)
        return draws.mul_(std)


@contextmanager
def secret_masks() -> Iterator[None]:
    """Give torch's default generators secret states inside the context, and restore them after it.

    Dropout draws its masks from them. Which mask an example gets depends on the examples before it, so that one more
    example exchanges the masks of others. Its effect is bounded by its own gradient, as DP-SGD needs, if masks are
    independent and unknown: they then have the same distribution with and without it. That of a CPU gets a whole state,
    since a seed determines 32 bits of it only.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        state = torch.default_generator.get_state().numpy()
        words = np.frombuffer(os.urandom(4 * _STATE_WORDS), dtype="<u4").astype("<u8")
        state[_STATE_START : _STATE_START + 8 * _STATE_WORDS] = words.view(np.uint8)
        # The seed's own state marks its words as used, so that the first draw makes new ones of these.
        torch.default_generator.manual_seed(0)
        state[:_STATE_START] = torch.default_generator.get_state().numpy()[:_STATE_START]
        torch.default_generator.set_state(torch.from_numpy(state))
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(secrets.randbits(63))
        yield


def poisson_batches(
    num_examples: int, sample_rate: float, steps: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Yield ``steps`` Poisson batches: each example is in each batch with probability ``sample_rate``.

    Batches may be empty.
    """
    # The same draws as Opacus' UniformWithReplacementSampler, without loading Opacus where no privacy is asked for.
    for _ in range(steps):
        yield torch.nonzero(torch.rand(num_examples, generator=generator) < sample_rate).flatten().tolist()

"""Where batches and noise come from: a stream cipher keyed by the operating system, or a torch generator.

A guarantee of differential privacy is worth as much as its randomness is unknown: who can predict the noise can
subtract it. torch's own generators (Mersenne Twister on a CPU, Philox on a GPU) are fast and not made to resist
prediction, so the default draws from ChaCha20 (RFC 8439), keyed by the operating system for each round and never by an
experiment's seed.

What stays open: noise is a float32 number added to a float32 sum, not a real number. A single Box-Muller draw leaves
gaps among the floats it can reach, through which the exact sum can be recognised (Mironov 2012; Jin et al. 2021, arXiv
2112.05307). Four independent draws are added and halved, which raises the work of that attack from about 2⁵³ to 2¹⁵⁹
(Holohan & Braghin 2021, arXiv 2107.10138, section 5.1); that is a countermeasure, not a proof. Nor is the time that a
draw takes hidden.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import Tensor

_KEY_BYTES = 32
_NONCE_BYTES = 16
_SUMMANDS = 4


class Randomness(Protocol):
    """What DP-SGD draws from."""

    def batches(self, num_examples: int, sample_rate: float, steps: int) -> Iterator[list[int]]:
        """Yield ``steps`` Poisson batches: each example is in each batch with chance ``sample_rate``."""

    def normal(self, like: Tensor, std: float) -> Tensor:
        """Return independent numbers from N(0, std²), of the shape, device and dtype of ``like``."""


class SecureRandomness:
    """A ChaCha20 key stream.

    Args:
        key: 32 bytes; None takes them from the operating system. A given key is for tests.
    """

    def __init__(self, key: bytes | None = None) -> None:
        # One stream a key, so that the nonce (RFC 8439's counter before it) may start at zero.
        cipher = Cipher(ChaCha20(os.urandom(_KEY_BYTES) if key is None else key, bytes(_NONCE_BYTES)), mode=None)
        self._stream = cipher.encryptor()

    def uniform(self, count: int) -> np.ndarray:
        """Return ``count`` float64 numbers, uniform on the 2⁵³ midpoints of (0, 1): neither 0 nor 1."""
        words = np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")
        return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def batches(self, num_examples: int, sample_rate: float, steps: int) -> Iterator[list[int]]:
        """Yield ``steps`` Poisson batches, positions in rising order."""
        for _ in range(steps):
            yield np.flatnonzero(self.uniform(num_examples) < sample_rate).tolist()

    def normal(self, like: Tensor, std: float) -> Tensor:
        """Return numbers from N(0, std²): each the half sum of four Box-Muller draws, made in float64."""
        count = like.numel()
        pairs = _SUMMANDS // 2 * count
        radius = torch.from_numpy(self.uniform(pairs)).log_().mul_(-2.0).sqrt_()
        angle = torch.from_numpy(self.uniform(pairs)).mul_(2.0 * math.pi)
        draws = torch.cat([radius * angle.cos(), radius * angle.sin()]).reshape(_SUMMANDS, count)
        values = draws.sum(dim=0).mul_(std / math.sqrt(_SUMMANDS))
        return values.to(like.device, like.dtype).reshape(like.shape)


class TorchRandomness:
    """torch's generators, seeded by the operating system.

    Args:
        seed: None takes it from the operating system. A given seed is for tests.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = secrets.randbits(62) if seed is None else seed
        self._batches = torch.Generator().manual_seed(self._seed)
        self._noise: dict[torch.device, torch.Generator] = {}

    def batches(self, num_examples: int, sample_rate: float, steps: int) -> Iterator[list[int]]:
        """Yield ``steps`` Poisson batches."""
        return poisson_batches(num_examples, sample_rate, steps, self._batches)

    def normal(self, like: Tensor, std: float) -> Tensor:
        """Return numbers from N(0, std²)."""
        if like.device not in self._noise:
            self._noise[like.device] = torch.Generator(like.device).manual_seed(self._seed + 1)
        draws = torch.randn(like.shape, generator=self._noise[like.device], device=like.device, dtype=like.dtype)
        return draws.mul_(std)


def poisson_batches(
    num_examples: int, sample_rate: float, steps: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Yield ``steps`` batches; each example is in each batch with chance ``sample_rate``, so batches may be empty."""
    # The sampler's name notwithstanding, it draws each position independently and without replacement.
    yield from UniformWithReplacementSampler(
        num_samples=num_examples, sample_rate=sample_rate, generator=generator, steps=steps
    )

"""How many examples were clipped, and how long their gradients were, under the same guarantee as the gradients.

Both are sums over a batch of one number an example, so each is released as the gradients are, with noise. One Gaussian
mechanism of multiplier σ can be shared out among several sums: with ``1/σ² = 1/σ_g² + Σ (Δ/s)²`` for gradients at
multiplier σ_g ≥ σ and sums of sensitivity Δ with noise of standard deviation s, the joint release costs exactly what
the gradients alone cost at σ (Andrew et al. 2021, arXiv 1905.03871, Theorem 1, do so for adaptive clipping). Here
σ_g = 1.005 σ: half a percent more noise in the gradients pays for both numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsvd.privacy.randomness import Randomness

# σ_g / σ.
GRADIENT_NOISE_FACTOR = 1.005
# Each number lies in [0, 1] and is centred, so that one example moves a sum by no more than this.
_SENSITIVITY = 0.5
_SUMS = 2


@dataclass(frozen=True)
class ClippingStatistics:
    """Noised means over the examples and steps of one round.

    Attributes:
        clipped_share: Share of the examples whose gradient was longer than ``max_grad_norm``.
        mean_grad_norm: Mean of ``min(‖gradient‖, max_grad_norm)``.
    """

    clipped_share: float
    mean_grad_norm: float


@dataclass
class ClippingMeter:
    """Sums up a step, and releases it with noise.

    Attributes:
        noise_multiplier: σ of the mechanism as it is accounted for.
        max_grad_norm: Where gradients are clipped.
        expected_batch_size: What sums are divided by.
        randomness: Draws the noise.
    """

    noise_multiplier: float
    max_grad_norm: float
    expected_batch_size: float
    randomness: Randomness
    _sums: Tensor = field(default_factory=lambda: torch.zeros(_SUMS, dtype=torch.float64))
    _released: list[Tensor] = field(default_factory=list)

    def add(self, norms: Tensor) -> None:
        """Add a batch's gradient norms, shape (batch,), before clipping."""
        short = (norms.double() / self.max_grad_norm).clamp(max=1.0)
        numbers = torch.stack([(norms > self.max_grad_norm).double(), short]).cpu()
        self._sums = self._sums + (numbers - _SENSITIVITY).sum(dim=1)

    def release(self) -> None:
        """End a step: draw its noise, and start the next one."""
        noise = self.randomness.normal(self._sums, statistics_noise_std(self.noise_multiplier))
        self._released.append((self._sums + noise) / self.expected_batch_size + _SENSITIVITY)
        self._sums = torch.zeros_like(self._sums)

    @property
    def statistics(self) -> ClippingStatistics:
        """The means over all steps, each within what is possible."""
        share, short = torch.stack(self._released).mean(dim=0).clamp(0.0, 1.0).tolist()
        return ClippingStatistics(share, short * self.max_grad_norm)


def statistics_noise_std(noise_multiplier: float) -> float:
    """Return the standard deviation s of each sum's noise: ``σ Δ √(n / (1 − (σ/σ_g)²))`` for n sums."""
    return noise_multiplier * _SENSITIVITY * math.sqrt(_SUMS / (1 - GRADIENT_NOISE_FACTOR**-2))

"""Statistics of gradient clipping, released under the same privacy guarantee as the gradients.

The statistics are the share of clipped examples and the mean norm of their gradients. Both are sums over a batch of one
value per example, so each is released with noise, as the gradients are. One Gaussian mechanism with noise multiplier σ
can be split among several sums: if ``1/σ² = 1/σ_g² + Σ (Δ/s)²`` for gradients with noise multiplier σ_g ≥ σ and sums of
sensitivity Δ with noise of standard deviation s, the joint release costs exactly what the gradients alone cost at σ
(Andrew et al. 2021, arXiv 1905.03871, Theorem 1, do so for adaptive clipping). Here σ_g = 1.005 σ: half a percent more
noise in the gradients pays for both statistics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsvd.privacy.randomness import Randomness

# σ_g / σ: the factor by which the gradients' noise grows to pay for the statistics.
GRADIENT_NOISE_FACTOR = 1.005
# Each value lies in [0, 1] and is centered, so that one example changes a sum by at most this amount.
_SENSITIVITY = 0.5
_NUM_SUMS = 2


@dataclass(frozen=True)
class ClippingStatistics:
    """Noised means over the examples and steps of one round.

    Attributes:
        clipped_share: Share of the examples whose gradient norm exceeded ``max_grad_norm``.
        mean_grad_norm: Mean of ``min(‖gradient‖, max_grad_norm)``.
    """

    clipped_share: float
    mean_grad_norm: float


@dataclass
class ClippingMeter:
    """Accumulator of the clipping statistics, which releases each step's sums with noise.

    Attributes:
        noise_multiplier: σ of the mechanism as it is accounted for.
        max_grad_norm: Clipping norm of the gradients.
        expected_batch_size: Divisor of the sums.
        randomness: Source of the noise.
    """

    noise_multiplier: float
    max_grad_norm: float
    expected_batch_size: float
    randomness: Randomness
    _sums: Tensor | None = None
    _released: list[Tensor] = field(default_factory=list)

    def add(self, norms: Tensor, clipped: Tensor | None = None) -> None:
        """Add a batch's gradients.

        Args:
            norms: Their norms before clipping, shape (batch,).
            clipped: Whether each was clipped, shape (batch,). Default: whether its norm exceeds ``max_grad_norm``.
        """
        relative_norms = (norms.double() / self.max_grad_norm).clamp(max=1.0)
        is_clipped = norms > self.max_grad_norm if clipped is None else clipped
        values = torch.stack([is_clipped.double(), relative_norms])
        sums = (values - _SENSITIVITY).sum(dim=1)
        self._sums = sums if self._sums is None else self._sums + sums

    def release(self) -> None:
        """End the current step by releasing its sums with noise, and start the next step."""
        # Read once per step: every read waits for the GPU.
        zero = torch.zeros(_NUM_SUMS, dtype=torch.float64)
        sums = zero if self._sums is None else self._sums.cpu()
        noise = self.randomness.normal(sums, statistics_noise_std(self.noise_multiplier))
        self._released.append((sums + noise) / self.expected_batch_size + _SENSITIVITY)
        self._sums = None

    @property
    def statistics(self) -> ClippingStatistics:
        """The means over all steps, each clamped to its possible range."""
        clipped_share, relative_norm = torch.stack(self._released).mean(dim=0).clamp(0.0, 1.0).tolist()
        return ClippingStatistics(clipped_share, relative_norm * self.max_grad_norm)


def statistics_noise_std(noise_multiplier: float) -> float:
    """Return the standard deviation s of each sum's noise: ``σ Δ √(n / (1 − (σ/σ_g)²))`` for n sums."""
    return noise_multiplier * _SENSITIVITY * math.sqrt(_NUM_SUMS / (1 - GRADIENT_NOISE_FACTOR**-2))

"""Opacus' optimizer with secret noise, gradient maps and separate clipping of the head.

Used by `fedsvd.privacy.dp_sgd` only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from fedsvd.privacy.clipping_groups import ClippingGroup, joint_norms
from fedsvd.privacy.clipping_statistics import ClippingMeter
from fedsvd.privacy.gradient_maps import GradientMap, map_before_clipping, map_noised_gradients
from fedsvd.privacy.noise_ahead import NoiseAhead

logger = logging.getLogger(__name__)


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer, with noise from `NoiseAhead`.

    Args:
        optimizer: The optimizer that takes the steps.
        noise: Source of the noise.
        meter: Receives the gradients' norms, if clipping statistics are released.
        groups: Parameters that are clipped separately before all are clipped together.
        maps: Maps of the gradients before clipping and after the noise; see `fedsvd.privacy.gradient_maps`.
        options: Arguments of Opacus' optimizer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        noise: NoiseAhead,
        meter: ClippingMeter | None,
        groups: Sequence[ClippingGroup],
        maps: Sequence[GradientMap] = (),
        **options: Any,
    ) -> None:
        super().__init__(optimizer, **options)
        self._noise = noise
        self._meter = meter
        self.groups = groups
        self._maps = maps
        self._non_finite: list[Tensor] = []

    def map_samples(self) -> None:
        """Apply the maps to each example's gradient, before it is clipped."""
        if self._maps:
            samples = map_before_clipping(self._maps, self.params, [p.grad_sample for p in self.params])
            for parameter, sample in zip(self.params, samples, strict=True):
                parameter.grad_sample = sample

    def clip_and_accumulate(self) -> None:
        """Clip and sum as Opacus does, but replace the gradients of an example by zero if its norm is not finite.

        Such a gradient cannot be clipped: it would turn the whole sum into NaN, and raising an error would reveal
        something about a single example. A gradient of zero preserves the sensitivity.
        """
        samples = [parameter.grad_sample for parameter in self.params]
        norms = joint_norms(samples)
        non_finite = ~torch.isfinite(norms)
        for sample in samples:
            sample.masked_fill_(non_finite.to(sample.device).view(-1, *[1] * (sample.dim() - 1)), 0.0)
        self._non_finite.append(non_finite.sum())
        clipped = self.clip_groups() if self.groups else norms > self.max_grad_norm
        if self._meter:
            self._meter.add(norms.masked_fill(non_finite, 0.0), clipped & ~non_finite)
        super().clip_and_accumulate()

    def clip_groups(self) -> Tensor:
        """Clip each group of parameters to its own bound, in place; return which examples were clipped, shape (batch,).

        The joint norm is then at most ``max_grad_norm``: clipping it again changes nothing beyond rounding errors.
        """
        return torch.stack([group.clip() for group in self.groups]).any(dim=0)

    def draw_noise(self) -> None:
        """Start to draw the noise of a step, with standard deviation σ · max_grad_norm."""
        if self.noise_multiplier:
            self._noise.request(self.params, self.noise_multiplier * self.max_grad_norm)

    def add_noise(self) -> None:
        """Set each gradient to the clipped sum plus the noise of this step, then map it."""
        # Read once per step: every read waits for the GPU.
        if num_non_finite := int(torch.stack(self._non_finite).sum()) if self._non_finite else 0:
            logger.warning("%d examples had gradients that are not finite; they count as zero.", num_non_finite)
        self._non_finite.clear()
        noises = self._noise.take() if self.noise_multiplier else [0.0] * len(self.params)
        for parameter, noise in zip(self.params, noises, strict=True):
            parameter.grad = (parameter.summed_grad + noise).view_as(parameter)
        if self._maps:
            map_noised_gradients(self._maps, self.params)

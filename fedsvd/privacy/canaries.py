"""Canaries whose gradients are given: one coordinate of the trained parameters each, the worst case of DP-SGD.

A Dirac canary's gradient is a long vector along one coordinate (Nasr et al. 2023, arXiv 2302.07956; taken for one-run
audits by Steinke et al. 2023, arXiv 2305.08846). Canaries of different coordinates do not disturb each other, and
clipping scales each to ``max_grad_norm``, the most that any example may move the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsvd.errors import PrivacyError


@dataclass(frozen=True)
class DiracCanaries:
    """Canaries of one audit; those whose coin said so are in the training data.

    Attributes:
        coordinates: Positions in the trained parameters, laid end to end, shape (m,); no two alike.
        signs: +1 or −1 for each, shape (m,).
        included: What the coins said, shape (m,): the secret that an attacker guesses.
        norm: Length of each canary's gradient before clipping.
    """

    coordinates: np.ndarray
    signs: np.ndarray
    included: np.ndarray
    norm: float

    @property
    def total(self) -> int:
        """How many there are in all, in or not: the m of the audit."""
        return len(self.included)

    @property
    def count(self) -> int:
        """How many are in the training data."""
        return int(self.included.sum())

    def gradients(self, numbers: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of some of those that are in, as `fedsvd.privacy.dp_sgd.Canaries` says."""
        chosen = np.flatnonzero(self.included)[list(numbers)]
        sizes = [tensor.numel() for tensor in like]
        flat = torch.zeros(len(chosen), sum(sizes), dtype=like[0].dtype, device=like[0].device)
        rows = torch.arange(len(chosen), device=flat.device)
        values = torch.as_tensor(self.norm * self.signs[chosen], dtype=flat.dtype, device=flat.device)
        flat[rows, torch.as_tensor(self.coordinates[chosen], device=flat.device)] = values
        parts = torch.split(flat, sizes, dim=1)
        return [part.reshape(-1, *tensor.shape) for part, tensor in zip(parts, like, strict=True)]

    def scores(self, update: Sequence[Tensor]) -> np.ndarray:
        """Return how far an update went against each canary's gradient, shape (m,): the attacker's evidence.

        Args:
            update: What the trained parameters moved by, in the order in which they are trained.
        """
        moved = torch.cat([tensor.detach().reshape(-1) for tensor in update]).double().cpu().numpy()
        scores: np.ndarray = -self.signs * moved[self.coordinates]
        return scores


def draw_canaries(num_canaries: int, num_parameters: int, norm: float, rng: np.random.Generator) -> DiracCanaries:
    """Draw coordinates, signs and coins.

    Args:
        num_canaries: m.
        num_parameters: Trained numbers in all.
        norm: Length of a canary's gradient.
        rng: For all draws.

    Raises:
        PrivacyError: More canaries than trained numbers.
    """
    if num_canaries > num_parameters:
        raise PrivacyError(
            f"{num_canaries} canaries need a coordinate each, but only {num_parameters} numbers are trained: give "
            f"at most {num_parameters}, or train more (a larger model.rank, model.lora_layers=all, train.head=private)."
        )
    coordinates = rng.choice(num_parameters, num_canaries, replace=False)
    signs = rng.choice([-1.0, 1.0], num_canaries)
    return DiracCanaries(coordinates, signs, rng.random(num_canaries) < 0.5, norm)

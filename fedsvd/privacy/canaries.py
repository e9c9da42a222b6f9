"""What DP-SGD asks of canaries, and its worst case: canaries of one coordinate of the trained parameters each.

A Dirac canary's gradient is a long vector along one coordinate (Nasr et al. 2023, arXiv 2302.07956; taken for one-run
audits by Steinke et al. 2023, arXiv 2305.08846). Canaries of different coordinates do not disturb each other, and
clipping scales each to ``max_grad_norm``, the most that any example may move the sum.

The attacker may know all other examples and when they were drawn: what DP-SGD claims holds against it, too, since the
draws of one example do not hang on those of the others. So it takes the data's own part out of what was released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsvd.errors import PrivacyError


class Canaries(Protocol):
    """Examples of an audit, beside the data: their gradients are given, all else happens to them as to any example."""

    @property
    def count(self) -> int:
        """How many there are."""

    def gradients(self, numbers: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of some canaries: for each trained parameter in ``like``, shape (batch, *parameter)."""

    def watch(self, samples: Sequence[Tensor], max_grad_norm: float) -> None:
        """Look at the data's own per-example gradients, shape (batch, *parameter) each, before canaries join them."""


@dataclass(frozen=True)
class DiracCanaries:
    """Canaries of one audit; those whose coin said so are in the training data.

    Attributes:
        coordinates: Positions in the trained parameters, laid end to end, shape (m,); no two alike.
        signs: +1 or −1 for each, shape (m,).
        included: What the coins said, shape (m,): the secret that an attacker guesses.
        norm: Length of each canary's gradient before clipping.
        known: The data's own clipped gradients along the canaries' coordinates, summed since `forget`, shape (m,).
    """

    coordinates: np.ndarray
    signs: np.ndarray
    included: np.ndarray
    norm: float
    known: np.ndarray

    @property
    def total(self) -> int:
        """How many there are in all, in or not: the m of the audit."""
        return len(self.included)

    @property
    def count(self) -> int:
        """How many are in the training data."""
        return int(self.included.sum())

    def gradients(self, numbers: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of some of those that are in, as `Canaries` says."""
        chosen = np.flatnonzero(self.included)[list(numbers)]
        sizes = [tensor.numel() for tensor in like]
        flat = torch.zeros(len(chosen), sum(sizes), dtype=like[0].dtype, device=like[0].device)
        rows = torch.arange(len(chosen), device=flat.device)
        values = torch.as_tensor(self.norm * self.signs[chosen], dtype=flat.dtype, device=flat.device)
        flat[rows, torch.as_tensor(self.coordinates[chosen], device=flat.device)] = values
        parts = torch.split(flat, sizes, dim=1)
        return [part.reshape(-1, *tensor.shape) for part, tensor in zip(parts, like, strict=True)]

    def watch(self, samples: Sequence[Tensor], max_grad_norm: float) -> None:
        """Add the data's own clipped gradients to ``known``, as `Canaries` says."""
        flat = torch.cat([sample.detach().flatten(1) for sample in samples], dim=1)
        norms = torch.linalg.vector_norm(flat, dim=1)
        # Opacus' clipping factor; an example whose gradient is not finite counts as nothing there, too.
        factors = torch.where(torch.isfinite(norms), (max_grad_norm / (norms + 1e-6)).clamp(max=1.0), 0.0)
        clipped = torch.nan_to_num(flat[:, torch.as_tensor(self.coordinates, device=flat.device)], 0.0, 0.0, 0.0)
        self.known[:] += (factors.double() @ clipped.double()).cpu().numpy()

    def forget(self) -> None:
        """Set ``known`` to zero, as for a new round."""
        self.known[:] = 0.0

    def scores(self, released: Sequence[Tensor], subtract_known: bool) -> np.ndarray:
        """Return how far a release goes along each canary's gradient, shape (m,): the attacker's evidence.

        Args:
            released: Noised sums of clipped gradients, by parameter, in the order in which they are trained.
            subtract_known: Take the data's own part out; right only where ``released`` is a plain sum of steps.
        """
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in released]).double().cpu().numpy()
        along = flat[self.coordinates] - (self.known if subtract_known else 0.0)
        scores: np.ndarray = self.signs * along
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
    return DiracCanaries(coordinates, signs, rng.random(num_canaries) < 0.5, norm, np.zeros(num_canaries))

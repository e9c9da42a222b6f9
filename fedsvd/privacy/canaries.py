"""Canaries: the interface that DP-SGD expects, and its worst case, canaries of one trained coordinate each.

The gradient of a Dirac canary is a long vector along one coordinate of the trained parameters (Nasr et al. 2023, arXiv
2302.07956; used for one-run audits by Steinke et al. 2023, arXiv 2305.08846). Canaries of different coordinates do not
interfere with each other, and clipping scales each to ``max_grad_norm``, the most by which any example can change the
sum.

The attacker may know all other examples and the batches in which they were drawn. The guarantee of DP-SGD also holds
against this attacker, because examples are drawn independently. The attacker therefore subtracts the contribution of
the real data from the released values.
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
    """Artificial examples of an audit, which define their gradients directly and are otherwise treated as examples."""

    @property
    def count(self) -> int:
        """Number of canaries in the training data."""

    def gradients(self, indices: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
        """Return the canaries' gradients, of shape (batch, *parameter) for each trained parameter in ``like``."""

    def observe_data(self, samples: Sequence[Tensor], max_grad_norm: float) -> None:
        """Receive the real data's per-example gradients, shape (batch, *parameter) each, before canaries are added."""


@dataclass(frozen=True)
class DiracCanaries:
    """Canaries of one audit, each of which is included in the training data or not.

    Attributes:
        coordinates: Distinct positions in the concatenated trained parameters, counted from their end (-1 is the last),
            shape (m,): so a value of the head, which comes last, keeps its position when the factors are frozen.
        signs: +1 or −1 for each canary, shape (m,).
        included: Whether each canary is in the training data, shape (m,): the secret that an attacker guesses.
        norm: L2 norm of each canary's gradient before clipping.
        known: Sum of the real data's clipped gradients along the canaries' coordinates since the last `reset_known`,
            shape (m,).
    """

    coordinates: np.ndarray
    signs: np.ndarray
    included: np.ndarray
    norm: float
    known: np.ndarray

    @property
    def total(self) -> int:
        """Number of canaries m of the audit, included or not."""
        return len(self.included)

    @property
    def count(self) -> int:
        """Number of canaries in the training data."""
        return int(self.included.sum())

    def gradients(self, indices: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of the included canaries with the given indices; see `Canaries`."""
        chosen = np.flatnonzero(self.included)[list(indices)]
        sizes = [tensor.numel() for tensor in like]
        flat = torch.zeros(len(chosen), sum(sizes), dtype=like[0].dtype, device=like[0].device)
        rows = torch.arange(len(chosen), device=flat.device)
        values = torch.as_tensor(self.norm * self.signs[chosen], dtype=flat.dtype, device=flat.device)
        flat[rows, torch.as_tensor(self.coordinates[chosen], device=flat.device)] = values
        parts = torch.split(flat, sizes, dim=1)
        return [part.reshape(-1, *tensor.shape) for part, tensor in zip(parts, like, strict=True)]

    def observe_data(self, samples: Sequence[Tensor], max_grad_norm: float) -> None:
        """Add the real data's clipped gradients to ``known``; see `Canaries`."""
        flat = torch.cat([sample.detach().flatten(1) for sample in samples], dim=1)
        norms = torch.linalg.vector_norm(flat, dim=1)
        # The clipping factor of Opacus. As in training, an example whose gradient is not finite contributes zero.
        factors = torch.where(torch.isfinite(norms), (max_grad_norm / (norms + 1e-6)).clamp(max=1.0), 0.0)
        clipped = torch.nan_to_num(flat[:, torch.as_tensor(self.coordinates, device=flat.device)], 0.0, 0.0, 0.0)
        self.known[:] += (factors.double() @ clipped.double()).cpu().numpy()

    def reset_known(self) -> None:
        """Set ``known`` to zero at the start of a new round."""
        self.known[:] = 0.0

    def scores(self, released: Sequence[Tensor], subtract_known: bool) -> np.ndarray:
        """Return the attacker's scores: the released values along the direction of each canary, shape (m,).

        Args:
            released: Noised sums of clipped gradients, one tensor per trained parameter, in training order.
            subtract_known: Whether to subtract the contribution of the real data. This is correct only if ``released``
                is the plain sum over the steps.
        """
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in released]).double().cpu().numpy()
        along = flat[self.coordinates] - (self.known if subtract_known else 0.0)
        scores: np.ndarray = self.signs * along
        return scores


def draw_canaries(num_canaries: int, num_parameters: int, norm: float, rng: np.random.Generator) -> DiracCanaries:
    """Draw the coordinates, signs and inclusion of canaries at random.

    Args:
        num_canaries: Number of canaries m.
        num_parameters: Number of trained values; if it changes between rounds, the smallest.
        norm: L2 norm of each canary's gradient before clipping.
        rng: Random generator for all draws.

    Raises:
        PrivacyError: There are more canaries than trained values.
    """
    if num_canaries > num_parameters:
        raise PrivacyError(
            f"{num_canaries} canaries need one trained value each, but only {num_parameters} values are trained in "
            f"every round. Use at most {num_parameters} canaries, or train more values (larger model.rank, "
            "model.lora_layers=all, train.head=private, train.head_rounds=0)."
        )
    coordinates = rng.choice(num_parameters, num_canaries, replace=False) - num_parameters
    signs = rng.choice([-1.0, 1.0], num_canaries)
    return DiracCanaries(coordinates, signs, rng.random(num_canaries) < 0.5, norm, np.zeros(num_canaries))

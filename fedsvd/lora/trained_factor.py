"""Which factor of each site is trained, where that differs between sites: the one that is not orthonormal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsvd.lora.peft_model import lora_sites


@torch.no_grad()
def trains_b(B: Tensor, A: Tensor) -> bool:
    """Return whether B is trained against orthonormal rows of A, and not A against orthonormal columns of B.

    Server and clients read it from the factors that both hold. If both are orthonormal, B is trained.

    Args:
        B: Shape (d_out, r).
        A: Shape (r, d_in).
    """
    return _deviation(A.double()) <= _deviation(B.double().mT)


def _deviation(rows: Tensor) -> float:
    return float((rows @ rows.mT - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).abs().max())


@dataclass(frozen=True)
class TrainedFactorMap:
    """The map that removes the gradients of the orthonormal factors, for `fedsvd.privacy.gradient_maps`.

    They take no part of the clipping norm, and the noise of their coordinates is dropped.

    Attributes:
        frozen: The ``id`` of each parameter that is not trained.
    """

    frozen: frozenset[int]

    @classmethod
    def of_model(cls, model: nn.Module) -> TrainedFactorMap:
        """Return the map at a model's current factors."""
        sites = lora_sites(model).values()
        return cls(frozenset(id(site.A if trains_b(site.B, site.A) else site.B) for site in sites))

    def before_clipping(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Replace the gradients of the orthonormal factors by zeros; see `GradientMap`."""
        pairs = zip(parameters, gradients, strict=True)
        return [torch.zeros_like(g) if id(parameter) in self.frozen else g for parameter, g in pairs]

    def after_noise(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Replace their noise by zeros; see `GradientMap`."""
        return self.before_clipping(parameters, gradients)

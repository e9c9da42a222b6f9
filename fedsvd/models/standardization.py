"""Frozen standardization of a classifier's features by statistics of public text.

The hidden states of all texts share a large mean and a few directions of large variance. Neither tells classes apart,
but both use up the norm to which differentially private training clips each example's gradient. With mean μ and
covariance Σ of the features of public texts, and λ̄ the mean eigenvalue of Σ, features become

    s · λ̄^¼ · (Σ + 0.1 λ̄ I)^(-¼) (x - μ)

The exponent -¼ halves the spread of the scales (full whitening, -½, amplifies noise directions). s makes the mean norm
on the public texts `FEATURE_NORM`, which is large beside the head's bias, whose feature is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FEATURE_NORM = 3.3
_REGULARIZATION = 0.1


@dataclass(frozen=True, eq=False)
class Standardization:
    """A linear map of features, ``(x - mean) @ matrix``.

    Attributes:
        mean: μ, shape (d,).
        matrix: ``s · λ̄^¼ · (Σ + 0.1 λ̄ I)^(-¼)``, symmetric, shape (d, d).
        corpus: The public texts, as strings: ``name``, ``sha256`` and ``num_texts``.
    """

    mean: Tensor
    matrix: Tensor
    corpus: Mapping[str, str]

    def save(self, path: Path) -> None:
        """Write a safetensors file that `load` reads."""
        tensors = {"mean": self.mean.contiguous(), "matrix": self.matrix.contiguous()}
        save_file(tensors, path, metadata=dict(self.corpus))

    @classmethod
    def load(cls, path: Path) -> Standardization:
        """Read a file that `save` wrote."""
        with safe_open(path, framework="pt") as file:
            return cls(file.get_tensor("mean"), file.get_tensor("matrix"), file.metadata())


def half_whitening(features: Tensor, corpus: Mapping[str, str]) -> Standardization:
    """Compute the standardization from the features of public texts, in float64.

    Args:
        features: Shape (texts, d), at least two texts.
        corpus: See `Standardization`.
    """
    x = features.double()
    mean = x.mean(dim=0)
    return Standardization(mean, _half_whitening_matrix(x - mean, FEATURE_NORM), corpus)


def half_whitening_without_mean(inputs: Tensor) -> Tensor:
    """Return the matrix M of a LoRA site's inputs, symmetric, shape (d, d), float64.

    With P the projection onto what is orthogonal to the mean, and Σ the covariance of ``P x``,

        M = s · P (Σ + 0.1 λ̄ I)^(-¼) P

    where s makes the mean norm of ``M x`` 1. M removes the mean instead of subtracting it, so that a factor ``A' M``
    needs no bias.

    Args:
        inputs: Public inputs x, shape (texts, d), at least two texts.
    """
    x = inputs.double()
    mean = x.mean(dim=0)
    direction = mean / torch.linalg.vector_norm(mean).clamp(min=1e-300)
    centered = x - mean
    centered = centered - torch.outer(centered @ direction, direction)
    matrix = _half_whitening_matrix(centered, 1.0)
    # Without the removed direction, in which the covariance is zero and the inverse root is largest.
    matrix -= torch.outer(matrix @ direction, direction)
    matrix -= torch.outer(direction, direction @ matrix)
    symmetric: Tensor = (matrix + matrix.T) / 2
    return symmetric


def _half_whitening_matrix(centered: Tensor, norm: float) -> Tensor:
    """Return ``s · (Σ + 0.1 λ̄ I)^(-¼)`` for centered features, shape (texts, d), whose mean norm becomes ``norm``."""
    values, vectors = torch.linalg.eigh(torch.cov(centered.T))
    values = values.clamp(min=0)
    average = values.mean()
    matrix = (vectors * (average / (values + _REGULARIZATION * average)) ** 0.25) @ vectors.T
    matrix *= norm / torch.linalg.vector_norm(centered @ matrix, dim=1).mean()
    # Symmetric up to rounding, and exactly so from here on.
    symmetric: Tensor = (matrix + matrix.T) / 2
    return symmetric

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
    values, vectors = torch.linalg.eigh(torch.cov((x - mean).T))
    values = values.clamp(min=0)
    average = values.mean()
    matrix = (vectors * (average / (values + _REGULARIZATION * average)) ** 0.25) @ vectors.T
    matrix *= FEATURE_NORM / torch.linalg.vector_norm((x - mean) @ matrix, dim=1).mean()
    # Symmetric up to rounding, and exactly so from here on.
    return Standardization(mean, (matrix + matrix.T) / 2, corpus)

"""Initial A from the inputs that public texts have at each LoRA site.

Principal components as an initialization are from EVA (Paischer et al. 2024, arXiv 2410.07170), which computes them on
the training data. Public text costs no privacy. In addition, the directions that all texts share are removed: under
B-only training, an example's gradient is ``∂B = s · Σₜ gₜ (A xₜ)ᵀ``, and where A lets a shared direction through, the
gradients of all examples are nearly one vector, on which clipping spends its norm.

With content tokens x (neither padding nor special tokens) of mean μ, and N an orthonormal basis of μ and of the mean
input m_c of each special token c ([CLS], [SEP]), the rows of A are the r leading eigenvectors of

    (I - N Nᵀ) E[x xᵀ] (I - N Nᵀ),

the covariance of what remains of x, since its mean is removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsvd.errors import ModelError
from fedsvd.lora.refactorize import with_positive_peaks

# Relative singular value below which a shared direction depends on the others.
_TOLERANCE = 1e-6


@dataclass
class InputMoments:
    """Sums over the inputs of one site, in float64.

    Attributes:
        width: d_in.
        total: Σ x over content tokens, shape (d_in,).
        square: Σ x xᵀ, shape (d_in, d_in).
        special: By special token id, the sum of its inputs, shape (d_in,).
    """

    width: int
    total: Tensor = field(init=False)
    square: Tensor = field(init=False)
    special: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total = torch.zeros(self.width, dtype=torch.float64)
        self.square = torch.zeros(self.width, self.width, dtype=torch.float64)

    def add(self, content: Tensor, special: Mapping[int, Tensor]) -> None:
        """Add inputs.

        Args:
            content: Inputs of content tokens, shape (tokens, d_in).
            special: Inputs of special tokens by id, shape (tokens, d_in) each.
        """
        x = content.detach().double().cpu()
        self.total += x.sum(dim=0)
        self.square += x.mT @ x
        for token, inputs in special.items():
            added = inputs.detach().double().cpu().sum(dim=0)
            self.special[token] = self.special[token] + added if token in self.special else added


def leading_directions(moments: InputMoments, rank: int, name: str) -> Tensor:
    """Return the rows of A for one site, shape (rank, d_in), float64, orthonormal, by descending variance.

    Args:
        moments: The site's inputs.
        rank: r.
        name: Name of the site, for the error message.

    Raises:
        ModelError: The rank exceeds the number of remaining directions.
    """
    # Of these sums only the directions matter, and of the second moment only the eigenvectors.
    shared = torch.stack([moments.total, *moments.special.values()])
    _, values, rows = torch.linalg.svd(shared / torch.linalg.vector_norm(shared, dim=1, keepdim=True).clamp(min=1e-300))
    basis = rows[: int((values > _TOLERANCE * values.max()).sum())]
    remaining = moments.width - len(basis)
    if rank > remaining:
        raise ModelError(
            f"method.init_a = public_pca is not possible at {name} with model.rank = {rank}: {moments.width} inputs "
            f"less {len(basis)} shared directions leave {remaining}. Lower model.rank."
        )
    projector = torch.eye(moments.width, dtype=torch.float64) - basis.mT @ basis
    # eigh sorts in ascending order; the removed directions have eigenvalue -1, below all others.
    vectors = torch.linalg.eigh(projector @ moments.square @ projector - basis.mT @ basis).eigenvectors
    return with_positive_peaks(vectors[:, -rank:].mT.flip(0))

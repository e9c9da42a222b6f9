"""Sums of low-rank products as one product of stacked factors, without forming a dense d_out × d_in matrix.

``Σ wₖ Bₖ Aₖ = [w₁B₁ … wₙBₙ] [A₁; …; Aₙ]``: a left factor of shape (d_out, R) and a right factor of shape (R, d_in),
where R is the sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsvd.lora.adapter import Adapter
from fedsvd.lora.refactorize import orthonormal_rows

# Site name to tensor.
Sites = Mapping[str, Tensor]


def stack(weights: Sequence[float], lefts: Sequence[Sites], rights: Sequence[Sites]) -> tuple[Sites, Sites]:
    """Stack weighted products at each site.

    Args:
        weights: Weights wₖ.
        lefts: Bₖ by site, shape (d_out, rₖ).
        rights: Aₖ by site, shape (rₖ, d_in).

    Returns:
        The left and right factors by site, of rank R = Σ rₖ.
    """
    left = {name: torch.cat([w * B[name] for w, B in zip(weights, lefts, strict=True)], dim=1) for name in lefts[0]}
    right = {name: torch.cat([A[name] for A in rights]) for name in rights[0]}
    return left, right


def truncated_svd(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best approximation of ``left @ right`` of a given rank, as U Σ and Vᵀ.

    Computed in float64 by QR of both factors and the SVD of their R × R core. The result is exact if the product has no
    higher rank.

    Args:
        left: Left factor, shape (d_out, R).
        right: Right factor, shape (R, d_in).
        rank: Rank of the result. If it exceeds the number of singular values, ``U Σ`` is padded with zeros and the rows
            of ``Vᵀ`` are completed, so that the new columns of ``U Σ`` have a gradient.

    Returns:
        ``U Σ`` of shape (d_out, rank) and ``Vᵀ`` of shape (rank, d_in), in the dtypes of the factors. The first
        min(rank, d_in) rows of ``Vᵀ`` are orthonormal, the others zero.
    """
    left_q, left_r = torch.linalg.qr(left.double())
    right_q, right_r = torch.linalg.qr(right.double().mT)
    U, S, Vh = torch.linalg.svd(left_r @ right_r.mT, full_matrices=False)
    size = min(rank, len(S))
    new_left, new_right = (left_q @ U[:, :size]) * S[:size], Vh[:size] @ right_q.mT
    if size < rank:
        new_left = torch.cat([new_left, new_left.new_zeros(len(new_left), rank - size)], dim=1)
        new_right = _complete_rows(new_right, rank)
    return new_left.to(left.dtype).contiguous(), new_right.to(right.dtype).contiguous()


def _complete_rows(rows: Tensor, count: int) -> Tensor:
    """Append orthonormal rows up to the width of the matrix, then rows of zeros."""
    orthonormal = min(count, rows.shape[1])
    completed = orthonormal_rows(torch.cat([rows, rows.new_zeros(orthonormal - len(rows), rows.shape[1])]))
    return torch.cat([completed, rows.new_zeros(count - orthonormal, rows.shape[1])])


def merge(adapter: Adapter, left: Sites, right: Sites) -> Adapter:
    """Return the adapter with a product added to its base.

    The factors are appended to the existing ones. Once the rank of the base exceeds twice the full rank of the largest
    site, the base is compressed to that full rank without changing the sum.

    Args:
        adapter: The adapter.
        left: Left factors by site, shape (d_out, R), with the same R at all sites.
        right: Right factors by site, shape (R, d_in).
    """
    if adapter.base_left:
        left = {name: torch.cat([adapter.base_left[name], new], dim=1) for name, new in left.items()}
        right = {name: torch.cat([adapter.base_right[name], new]) for name, new in right.items()}
    full_rank = max(min(len(left[name]), right[name].shape[1]) for name in left)
    if next(iter(left.values())).shape[1] > 2 * full_rank:
        pairs = {name: truncated_svd(left[name], right[name], full_rank) for name in left}
        left = {name: pair[0] for name, pair in pairs.items()}
        right = {name: pair[1] for name, pair in pairs.items()}
    return adapter.with_parts({"base_left": left, "base_right": right})

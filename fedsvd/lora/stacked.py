"""Sums of low-rank products as one product of stacked factors; a dense d_out × d_in matrix is never formed.

``Σ wₖ Bₖ Aₖ = [w₁B₁ … wₙBₙ] [A₁; …; Aₙ]``: a left factor of shape (d_out, R) and a right one of shape (R, d_in), with
R the sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsvd.lora.adapter import Adapter

Sites = Mapping[str, Tensor]


def stack(weights: Sequence[float], lefts: Sequence[Sites], rights: Sequence[Sites]) -> tuple[Sites, Sites]:
    """Stack weighted products site by site.

    Args:
        weights: wₖ.
        lefts: Bₖ by site, shape (d_out, rₖ).
        rights: Aₖ by site, shape (rₖ, d_in).

    Returns:
        Left and right factors by site, of rank R = Σ rₖ.
    """
    left = {name: torch.cat([w * B[name] for w, B in zip(weights, lefts, strict=True)], dim=1) for name in lefts[0]}
    right = {name: torch.cat([A[name] for A in rights]) for name in rights[0]}
    return left, right


def truncated_svd(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best approximation of ``left @ right`` of a given rank, in the form U Σ and Vᵀ.

    By QR of both factors and the SVD of their small core, in float64; exact where the product has no higher rank.

    Args:
        left: (d_out, R).
        right: (R, d_in).
        rank: At most so many columns; zeros fill up where the matrices allow fewer.

    Returns:
        ``U Σ`` of shape (d_out, rank) and ``Vᵀ`` of shape (rank, d_in), in the dtypes of the factors.
    """
    left_q, left_r = torch.linalg.qr(left.double())
    right_q, right_r = torch.linalg.qr(right.double().mT)
    U, S, Vh = torch.linalg.svd(left_r @ right_r.mT, full_matrices=False)
    kept = min(rank, len(S))
    new_left, new_right = (left_q @ U[:, :kept]) * S[:kept], Vh[:kept] @ right_q.mT
    if kept < rank:
        new_left = torch.cat([new_left, new_left.new_zeros(len(new_left), rank - kept)], dim=1)
        new_right = torch.cat([new_right, new_right.new_zeros(rank - kept, new_right.shape[1])])
    return new_left.to(left.dtype).contiguous(), new_right.to(right.dtype).contiguous()


def merge(adapter: Adapter, left: Sites, right: Sites) -> Adapter:
    """Add a product to the adapter's base.

    The factors are appended to those that are there. Once the base's rank exceeds twice what the largest site can have,
    it is written anew with that rank: the same sum, in fewer numbers.

    Args:
        adapter: Whose base grows.
        left: By site, shape (d_out, R), the same R everywhere.
        right: By site, shape (R, d_in).
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

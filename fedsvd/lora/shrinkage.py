"""Optimal shrinkage of singular values for a known noise level (Gavish and Donoho 2017, arXiv 1405.7511).

Independent noise of standard deviation σ inflates the singular values of a low-rank m × n matrix, and singular values
below ``σ (√m + √n)`` are noise only. The function of a singular value y that minimizes the squared error of the matrix
is, with n ≥ m, β = m / n and y in units of σ√n (the paper's equation for the Frobenius norm),

    η(y) = √((y² − β − 1)² − 4β) / y   for y ≥ 1 + √β,   else 0.

Under DP-SGD, σ is known exactly and public, and post-processing of a noisy sum consumes no privacy budget.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shrink(singular_values: Tensor, noise_std: float, shape: tuple[int, int]) -> Tensor:
    """Shrink the singular values of a noisy matrix.

    Args:
        singular_values: Singular values in any order, shape (…).
        noise_std: Standard deviation σ of the noise in each entry; with 0 the values are returned unchanged.
        shape: Shape of the matrix.

    Returns:
        The shrunk singular values, with the same shape and dtype.
    """
    if noise_std <= 0:
        return singular_values
    small, large = sorted(shape)
    beta, unit = small / large, noise_std * math.sqrt(large)
    y = singular_values.double() / unit
    root = torch.sqrt(((y**2 - beta - 1) ** 2 - 4 * beta).clamp_min(0))
    shrunk = torch.where(y > 1 + math.sqrt(beta), unit * root / y.clamp_min(1), torch.zeros_like(y))
    return shrunk.to(singular_values)


def shrink_columns(B: Tensor, noise_std: float) -> Tensor:
    """Shrink the singular values of a matrix with orthogonal columns, such as a refactorized B.

    The column norms of such a matrix are its singular values.

    Args:
        B: Matrix of shape (d_out, r).
        noise_std: Standard deviation of the noise in each entry.
    """
    norms = torch.linalg.vector_norm(B.double(), dim=0)
    factors: Tensor = shrink(norms, noise_std, (B.shape[0], B.shape[1])) / norms.clamp_min(
        torch.finfo(torch.float64).tiny
    )
    return (B.double() * factors).to(B.dtype)

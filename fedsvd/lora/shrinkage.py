"""Optimal shrinkage of singular values for a known level of noise (Gavish and Donoho 2017, arXiv 1405.7511).

A matrix of low rank plus independent noise of standard deviation σ has singular values that are too large, and those
below ``σ (√m + √n)`` are noise alone. For the squared error of the whole matrix the best function of a singular value y
is, with n ≥ m, β = m / n and y in units of σ√n (their equation for the Frobenius norm),

    η(y) = √((y² − β − 1)² − 4β) / y   for y ≥ 1 + √β,   else 0.

Under DP-SGD σ is known exactly and is nobody's secret, and what is made of a noised sum costs no privacy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shrink(singular_values: Tensor, noise_std: float, shape: tuple[int, int]) -> Tensor:
    """Shrink the singular values of a matrix with noise.

    Args:
        singular_values: Any order, shape (…).
        noise_std: σ of each entry; 0 changes nothing.
        shape: Of the matrix.

    Returns:
        What is best put in their place, of the same shape and dtype.
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
    """Shrink a matrix whose columns are orthogonal, as refactorizing leaves B: their lengths are its singular values.

    Args:
        B: (d_out, r).
        noise_std: Of each of its entries.
    """
    lengths = torch.linalg.vector_norm(B.double(), dim=0)
    factors: Tensor = shrink(lengths, noise_std, (B.shape[0], B.shape[1])) / lengths.clamp_min(
        torch.finfo(torch.float64).tiny
    )
    return (B.double() * factors).to(B.dtype)

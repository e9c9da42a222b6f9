"""Factors of chosen rank and condition, and what each dtype can hold of them."""

import math

import torch
from torch import Tensor

# dtype -> largest error of the product and of orthonormality, relative to the largest singular value.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-6, torch.bfloat16: 3e-2}


def random_factors(
    *,
    seed: int,
    sites: tuple[int, ...] = (),
    d_out: int = 30,
    d_in: int = 20,
    r: int = 4,
    rank: int | None = None,
    condition: float = 1.0,
    orthonormal: bool = True,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Factors whose B has the given rank and condition number within that rank."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*sites, *shape, generator=generator, dtype=torch.float64)

    size = min(d_out, r)
    rank = size if rank is None else min(rank, size)
    left, right = torch.linalg.qr(normal(d_out, size)).Q, torch.linalg.qr(normal(r, size)).Q
    lengths = torch.zeros(size, dtype=torch.float64)
    lengths[:rank] = torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)
    B = (left * lengths) @ right.mT
    A = normal(r, d_in)
    if orthonormal:
        A = torch.linalg.qr(A.mT).Q.mT
    return B.to(dtype), A.to(dtype)

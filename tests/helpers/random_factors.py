"""Random LoRA factors with a given rank and condition number, and error tolerances by dtype."""

import math

import torch
from torch import Tensor

# Largest error of the product and of orthonormality by dtype, relative to the largest singular value.
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
    """Return factors B and A where B has the given rank and, within it, the given condition number."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*sites, *shape, generator=generator, dtype=torch.float64)

    size = min(d_out, r)
    rank = size if rank is None else min(rank, size)
    left, right = torch.linalg.qr(normal(d_out, size)).Q, torch.linalg.qr(normal(r, size)).Q
    singular_values = torch.zeros(size, dtype=torch.float64)
    singular_values[:rank] = torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)
    B = (left * singular_values) @ right.mT
    A = normal(r, d_in)
    if orthonormal:
        A = torch.linalg.qr(A.mT).Q.mT
    return B.to(dtype), A.to(dtype)

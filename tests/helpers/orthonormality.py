"""Whether the rows of a factor are orthonormal."""

import torch
from torch import Tensor


def is_orthonormal(A: Tensor, tolerance: float = 1e-5) -> bool:
    """Return whether every entry of AAᵀ - I, at every site, is within a tolerance of zero; False if A contains NaN.

    A has shape (…, r, d_in). The default tolerance suits float32, 1e-2 bfloat16.
    """
    gram = A.detach().double() @ A.detach().double().mT
    return bool(((gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs() <= tolerance).all())

"""Refactorization of all sites of an adapter, batched by shape."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from fedsvd.lora.adapter import Adapter
from fedsvd.lora.refactorize import refactorize


def refactorize_sites(adapter: Adapter, *, of_rows: bool = True) -> tuple[Adapter, dict[str, Tensor]]:
    """Refactorize B A at every site, in one batched call per site shape.

    Args:
        adapter: The adapter to refactorize; its products B A are preserved.
        of_rows: If True, make the rows of A orthonormal and put the singular values into B. If False, make the columns
            of B orthonormal and put the singular values into A.

    Returns:
        The refactorized adapter, and each site's rotation R (float64): the new A is ``Rᵀ A``, or, with
        ``of_rows=False``, the new B is ``B R``.
    """
    groups: dict[tuple[torch.Size, torch.Size], list[str]] = defaultdict(list)
    for name in adapter.A:
        groups[adapter.B[name].shape, adapter.A[name].shape].append(name)
    A: dict[str, Tensor] = {}
    B: dict[str, Tensor] = {}
    rotations: dict[str, Tensor] = {}
    for names in groups.values():
        Bs, As = torch.stack([adapter.B[n] for n in names]), torch.stack([adapter.A[n] for n in names])
        result = refactorize(Bs, As) if of_rows else refactorize(As.mT, Bs.mT)
        new_B, new_A = (result.B, result.A) if of_rows else (result.A.mT, result.B.mT)
        A.update(zip(names, new_A.contiguous().unbind(), strict=True))
        B.update(zip(names, new_B.contiguous().unbind(), strict=True))
        rotations.update(zip(names, result.rotation.unbind(), strict=True))
    return adapter.with_parts({"A": {n: A[n] for n in adapter.A}, "B": {n: B[n] for n in adapter.B}}), rotations

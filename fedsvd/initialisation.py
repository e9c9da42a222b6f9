"""Where the factors start."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsvd.adapter import Adapter
from fedsvd.errors import ConfigError
from fedsvd.refactorize import orthonormal_rows

A_INITIALISATIONS = ("kaiming", "orthonormal", "weight_svd")
B_INITIALISATIONS = ("kaiming", "orthonormal", "zeros")


def initialise(
    shapes: Adapter, *, init_a: str, init_b: str, seed: int, weights: Mapping[str, Tensor] | None = None
) -> Adapter:
    """Draw an adapter's factors; the same seed gives the same factors on every machine, ``weight_svd`` apart.

    Args:
        shapes: The adapter whose shapes, scales and head are kept.
        init_a: ``kaiming`` (uniform with bound 1/√d_in, as LoRA does), ``orthonormal`` (A Aᵀ = I) or ``weight_svd``
            (the frozen weight's r largest right singular vectors).
        init_b: ``zeros``, or ``kaiming`` or ``orthonormal`` (BᵀB = I), which start away from the base model.
        seed: Seed of the experiment; site k draws from its own stream.
        weights: Site name to frozen weight, shape (d_out, d_in); needed for ``weight_svd`` only.

    Raises:
        ConfigError: An unknown initialisation.
    """
    A, B = {}, {}
    for index, name in enumerate(shapes.A):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        if init_a == "weight_svd":
            A[name] = _right_singular_vectors((weights or {})[name], shapes.A[name])
        else:
            A[name] = _draw(init_a, shapes.A[name], generator, "method.init_a")
        B[name] = _draw(init_b, shapes.B[name].mT, generator, "method.init_b").mT.contiguous()
    return shapes.with_parts({"A": A, "B": B})


def _draw(init: str, like: Tensor, generator: torch.Generator, key: str) -> Tensor:
    rows, columns = like.shape
    if init == "zeros":
        return torch.zeros_like(like)
    if init == "orthonormal":
        return orthonormal_rows(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).to(like)
    if init == "kaiming":
        uniform = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
        return ((2 * uniform - 1) / math.sqrt(columns)).to(like)
    raise ConfigError(f"{key} = {init!r} is not known; allowed: {', '.join(_allowed(key))}.")


def _allowed(key: str) -> tuple[str, ...]:
    return A_INITIALISATIONS if key.endswith("_a") else B_INITIALISATIONS


def _right_singular_vectors(weight: Tensor, like: Tensor) -> Tensor:
    rows: Tensor = torch.linalg.svd(weight.detach().double(), full_matrices=False).Vh[: len(like)]
    # A singular vector's sign is arbitrary; its largest entry is made positive.
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return (rows * largest.sign()).to(like)

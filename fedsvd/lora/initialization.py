"""Initialization of LoRA factors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsvd.errors import ConfigError
from fedsvd.lora.adapter import Adapter
from fedsvd.lora.refactorize import orthonormal_rows, with_positive_peaks

A_INITIALIZATIONS = ("kaiming", "orthonormal", "weight_svd", "dct", "public_pca", "zeros")
B_INITIALIZATIONS = ("kaiming", "orthonormal", "weight_svd", "zeros", "public_jacobian")

# Initializations that are identical on every machine for a given seed. Factors computed from weights can differ between
# machines in the last digits, or in the order of near-equal singular values, so the server sends them.
SEEDED_INITIALIZATIONS = ("kaiming", "orthonormal", "zeros")
_WEIGHT_INITIALIZATIONS = frozenset({"weight_svd", "dct"})


def initialize_factors(
    shapes: Adapter,
    *,
    init_a: str,
    init_b: str,
    seed: int,
    weights: Mapping[str, Tensor] | None = None,
    public_rows: Mapping[str, Tensor] | None = None,
    public_columns: Mapping[str, Tensor] | None = None,
) -> Adapter:
    """Initialize an adapter's factors.

    Initializations in `SEEDED_INITIALIZATIONS` depend only on the seed.

    Args:
        shapes: An adapter with the desired shapes; its scales, cores and head are copied.
        init_a: ``kaiming`` (uniform with bound 1/√d_in, as LoRA does), ``orthonormal`` (A Aᵀ = I), ``weight_svd`` (the
            frozen weight's r largest right singular vectors), ``dct`` (rows of the orthonormal DCT-II basis, those that
            carry most of the frozen weight; see `dct_indices`), ``public_pca`` (see `fedsvd.lora.public_pca`) or
            ``zeros`` (for methods that train A first).
        init_b: ``zeros``, or ``kaiming``, ``orthonormal`` (BᵀB = I) or ``weight_svd`` (the r largest left singular
            vectors) or ``public_jacobian`` (see `fedsvd.training.site_outputs`). With all but ``zeros`` the initial
            model differs from the base model, unless A or the core is zero.
        seed: Seed of the experiment; each site draws from its own stream.
        weights: Frozen weights by site name, shape (d_out, d_in); required for ``weight_svd`` and ``dct`` only.
        public_rows: Rows of A by site name, shape (r, d_in); required for ``public_pca`` only.
        public_columns: Columns of B by site name, shape (d_out, r); required for ``public_jacobian`` only.

    Raises:
        ConfigError: An initialization is unknown.
    """
    A, B = {}, {}
    for index, name in enumerate(shapes.A):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        weight = weights.get(name) if weights and _WEIGHT_INITIALIZATIONS & {init_a, init_b} else None
        if init_a == "public_pca" and public_rows is not None:
            A[name] = public_rows[name].to(shapes.A[name])
        else:
            A[name] = _initialize(init_a, shapes.A[name], generator, weight, "method.init_a")
        if init_b == "public_jacobian" and public_columns is not None:
            B[name] = public_columns[name].to(shapes.B[name])
            continue
        transposed = None if weight is None else weight.mT
        B[name] = _initialize(init_b, shapes.B[name].mT, generator, transposed, "method.init_b").mT.contiguous()
    return shapes.with_parts({"A": A, "B": B})


def dct_indices(weight: Tensor, rank: int) -> Tensor:
    """Return the frequencies k of the DCT-II with the largest ``‖W φₖ‖``, in ascending order.

    Args:
        weight: W, shape (d_out, d_in).
        rank: Number of frequencies.

    Returns:
        An int64 tensor of shape (rank,).
    """
    # SciPy's transforms take a quarter of a second to import and only this initialization needs them.
    import scipy.fft

    coefficients = torch.from_numpy(scipy.fft.dct(weight.detach().double().cpu().numpy(), axis=1, norm="ortho"))
    return torch.topk(torch.linalg.vector_norm(coefficients, dim=0), rank).indices.sort().values


def dct_rows(indices: Tensor, like: Tensor) -> Tensor:
    """Return rows φₖ of the orthonormal DCT-II basis (Ahmed, Natarajan, Rao 1974), identical on every machine.

    Args:
        indices: Frequencies k, shape (r,), each from 0 to d_in - 1.
        like: A tensor with the desired shape (r, d_in), dtype and device.
    """
    columns = like.shape[1]
    positions = torch.arange(columns, dtype=torch.float64) + 0.5
    frequencies = indices.to("cpu", torch.float64).unsqueeze(1)
    rows = torch.cos(math.pi / columns * frequencies * positions) * math.sqrt(2 / columns)
    return torch.where(frequencies == 0, rows / math.sqrt(2), rows).to(like)


def _initialize(init: str, like: Tensor, generator: torch.Generator, weight: Tensor | None, key: str) -> Tensor:
    if init == "weight_svd" and weight is not None:
        return _right_singular_vectors(weight, like)
    if init == "dct" and weight is not None and key.endswith("_a"):
        return dct_rows(dct_indices(weight, len(like)), like)
    return _draw(init, like, generator, key)


def _draw(init: str, like: Tensor, generator: torch.Generator, key: str) -> Tensor:
    rows, columns = like.shape
    if init == "zeros":
        return torch.zeros_like(like)
    if init == "orthonormal":
        return orthonormal_rows(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).to(like)
    if init == "kaiming":
        uniform = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
        return ((2 * uniform - 1) / math.sqrt(columns)).to(like)
    raise ConfigError(f"{key} = {init!r} is unknown; allowed: {', '.join(_allowed(key))}.")


def _allowed(key: str) -> tuple[str, ...]:
    return A_INITIALIZATIONS if key.endswith("_a") else B_INITIALIZATIONS


def _right_singular_vectors(weight: Tensor, like: Tensor) -> Tensor:
    rows: Tensor = torch.linalg.svd(weight.detach().double(), full_matrices=False).Vh[: len(like)]
    return with_positive_peaks(rows).to(like)

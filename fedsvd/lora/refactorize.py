"""The SVD of BA from its factors alone: the maths of FedSVD's server step.

For a site with weight update BA, where B is (d_out, r) and A is (r, d_in), `refactorize` returns factors of the same
product whose A has orthonormal rows and whose B has orthogonal columns, longest first: B = U Σ and A = Vᵀ of the SVD.
The d_out × d_in product is never formed. Leading dimensions are batch dimensions: the sites of one shape in one call.

The reference is the server step of FedSVD (Lee et al. 2025, arXiv 2505.12805), which takes the SVD of the dense BA.
The factors here agree with it to rounding, except where BA has rank below r: a dense SVD then fills A with arbitrary
directions, `refactorize` keeps the row space of A.

Precision: BᵀB and all r × r work are in float64; float32 factors on the CPU are otherwise multiplied in float32, all
others in float64. Each result is in the dtype of its input. The rows of a bfloat16 A are therefore orthonormal only to
about 1e-2, and its roundings add up over rounds: keep the server's factors in float32. The device must have float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsvd.errors import ModelError

# ‖AAᵀ - I‖_F up to here leaves all eigenvalues of AAᵀ within 0.9 and 1.1: its Cholesky factor exists and is accurate.
_ALMOST_ORTHONORMAL = 0.1

# Entries of B made float64 at a time on the CPU: 2 MiB stays in cache, and the allocator need not map fresh pages.
_ENTRIES_AT_A_TIME = 2**18


@dataclass(frozen=True)
class Refactorized:
    """Factors of an unchanged product BA, and how its coordinates moved.

    Attributes:
        B: (…, d_out, r) in the dtype of the old B: orthogonal columns, their lengths the singular values, descending.
        A: (…, r, d_in) in the dtype of the old A: orthonormal rows.
        rotation: (…, r, r), float64, with `A == rotation.mT @ A_old`. A gradient or momentum `m` with respect to the
            old B becomes `m @ rotation`. Where the old rows were orthonormal it is orthogonal and `B == B_old @
            rotation`. Where the old A had rank below r, it does not reach the rows that were added to complete it.
    """

    B: Tensor
    A: Tensor
    rotation: Tensor


@torch.no_grad()
def refactorize(B: Tensor, A: Tensor) -> Refactorized:
    """Factorize BA anew as in its SVD, without forming it.

    With A almost orthonormal at every site (each round but the first) r × r Gram matrices decide everything: with
    AAᵀ = LLᵀ and Lᵀ(BᵀB)L = V Σ² Vᵀ the new factors are B L V and Vᵀ L⁻¹ A, in O((d_out + d_in) r²). L takes up the
    drift of A's rows, so that rounding never accumulates there. Otherwise A = RᵀQᵀ and the SVD of B Rᵀ by QR.

    Where B is rank-deficient or zero the row space of A is kept. Where A is rank-deficient its row space is completed
    to dimension r by directions that carry no weight. Singular values below 1e-7 of a site's largest are only known to
    be that small. Signs: in each column of V the entry of largest magnitude is positive.

    Args:
        B: (…, d_out, r), any floating dtype; d_out may be below r.
        A: (…, r, d_in), with the leading dimensions and the device of B, and r <= d_in.

    Returns:
        New factors, detached, in the dtypes and on the device of the old ones; the inputs are not changed.

    Raises:
        ModelError: Shapes, dtypes or devices do not fit, r exceeds d_in, or an entry is not finite.
    """
    _check_factors(B, A)
    B_work, A_work = _in_product_dtype(B), _in_product_dtype(A)
    gram_A = (A_work @ A_work.mT).to(torch.float64)
    gram_B = _gram_of_columns(B_work)
    almost_orthonormal = torch.linalg.matrix_norm(gram_A - _identity_like(gram_A)) <= _ALMOST_ORTHONORMAL
    # One transfer decides the route. Overflow and NaN fail here too, and are told apart in the general route.
    if not bool(almost_orthonormal.all() & gram_B.isfinite().all()):
        return _refactorize_by_qr(B, A)

    L = torch.linalg.cholesky_ex(gram_A).L
    # eigh sorts ascending; the negated matrix gives descending order and, for B = 0, V = I: A stays as it is.
    V = _fix_signs(torch.linalg.eigh(-(L.mT @ gram_B @ L)).eigenvectors)
    rotation = torch.linalg.solve_triangular(L.mT, V, upper=True)
    new_B = B_work @ (L @ V).to(B_work.dtype)
    new_A = rotation.mT.to(A_work.dtype) @ A_work
    return Refactorized(B=new_B.to(B.dtype), A=new_A.to(A.dtype), rotation=rotation)


@torch.no_grad()
def orthonormal_rows(A: Tensor) -> Tensor:
    """Orthonormal basis of the row space of A, by QR of Aᵀ in float64.

    The basis is that of Gram-Schmidt: row i of A has a non-negative component along row i of the result. Where A is
    rank-deficient the basis is completed to r rows, and spans more than A.

    Args:
        A: (…, r, d_in) with r <= d_in, any floating dtype.

    Returns:
        (…, r, d_in) in the dtype and on the device of A.

    Raises:
        ModelError: A is not a floating matrix with r <= d_in, or holds a non-finite entry.
    """
    _check_rows(A)
    _check_finite("A", A)
    return _positive_qr(A.to(torch.float64).mT)[0].mT.to(A.dtype).contiguous()


@torch.no_grad()
def is_orthonormal(A: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether every entry of AAᵀ - I, at every site, is within `tolerance` of zero.

    Args:
        A: (…, r, d_in), any floating dtype; the products are in float64.
        tolerance: Largest absolute deviation allowed; 1e-5 suits float32, 1e-2 bfloat16.

    Returns:
        True or False; False where A holds NaN or r exceeds d_in.
    """
    A64 = A.to(torch.float64)
    gram = A64 @ A64.mT
    return bool(((gram - _identity_like(gram)).abs() <= tolerance).all())


def _refactorize_by_qr(B: Tensor, A: Tensor) -> Refactorized:
    """The general route: any A with finite entries, all in float64."""
    _check_finite("B", B)
    _check_finite("A", A)
    Q, R = _positive_qr(A.to(torch.float64).mT)
    BR = B.to(torch.float64) @ R.mT
    core = torch.linalg.qr(BR, mode="r").R
    # All r right singular vectors are wanted, even where d_out < r leaves the core with fewer rows.
    V = _fix_signs(torch.linalg.svd(core, full_matrices=True).Vh.mT)
    # An A that is singular to the precision of its own dtype has no inverse change of coordinates: hence its rtol.
    rotation = torch.linalg.pinv(R, rtol=torch.finfo(A.dtype).eps * A.shape[-1]) @ V
    return Refactorized(B=(BR @ V).to(B.dtype), A=(V.mT @ Q.mT).to(A.dtype), rotation=rotation)


def _in_product_dtype(factor: Tensor) -> Tensor:
    # CUDA may be set to run float32 products as TF32, with three digits; the CPU's batched products are true float32.
    keeps_float32 = factor.dtype is torch.float32 and factor.device.type == "cpu"
    return factor if keeps_float32 else factor.to(torch.float64)


def _gram_of_columns(B: Tensor) -> Tensor:
    """BᵀB in float64, (…, r, r)."""
    d_out, rank = B.shape[-2:]
    if B.device.type != "cpu" or B.dtype is torch.float64:
        B64 = B.to(torch.float64)
        return B64.mT @ B64
    grams = []
    for sites in torch.split(B.reshape(-1, d_out, rank), max(1, _ENTRIES_AT_A_TIME // (d_out * rank))):
        sites64 = sites.to(torch.float64)
        grams.append(sites64.mT @ sites64)
    return torch.cat(grams).reshape(*B.shape[:-2], rank, rank)


def _positive_qr(X: Tensor) -> tuple[Tensor, Tensor]:
    """QR whose R has a non-negative diagonal, which makes it unique where X has full column rank."""
    Q, R = torch.linalg.qr(X)
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(X.dtype)
    return Q * signs.unsqueeze(-2), R * signs.unsqueeze(-1)


def _fix_signs(V: Tensor) -> Tensor:
    """Columns of V with the sign that makes their entry of largest magnitude positive."""
    return V * V.gather(-2, V.abs().argmax(dim=-2, keepdim=True)).sign()


def _identity_like(gram: Tensor) -> Tensor:
    return torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def _check_factors(B: Tensor, A: Tensor) -> None:
    _check_rows(A)
    if not B.is_floating_point() or B.ndim != A.ndim or B.shape[-1] != A.shape[-2] or B.shape[:-2] != A.shape[:-2]:
        raise ModelError(
            f"B of shape {tuple(B.shape)} and dtype {B.dtype} does not fit A of shape {tuple(A.shape)}: allowed are "
            "floating B (…, d_out, r) and A (…, r, d_in) with equal leading dimensions and one r. "
            "Stack the sites of one shape only."
        )
    if B.device != A.device:
        raise ModelError(f"B is on {B.device} and A on {A.device}: both must be on one device. Move one of them.")


def _check_rows(A: Tensor) -> None:
    if not A.is_floating_point() or A.ndim < 2 or A.shape[-2] < 1:
        raise ModelError(
            f"A has shape {tuple(A.shape)} and dtype {A.dtype}: allowed is a floating (…, r, d_in) with r >= 1. "
            "Pass A as a matrix per site."
        )
    rank, d_in = A.shape[-2:]
    if rank > d_in:
        raise ModelError(
            f"A has rank r = {rank} rows of length d_in = {d_in}: at most {d_in} rows can be orthonormal. "
            f"Choose r <= {d_in} for this site."
        )


def _check_finite(name: str, factor: Tensor) -> None:
    finite = factor.isfinite()
    if not bool(finite.all()):
        raise ModelError(
            f"{name} of shape {tuple(factor.shape)} holds {int((~finite).sum())} entries that are NaN or infinite: "
            "all must be finite. Drop the update that brought them in, or lower the learning rate if training diverged."
        )

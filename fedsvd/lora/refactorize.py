"""The SVD of BA computed from its factors, as used in FedSVD's server step.

For a site with weight update BA, where B is (d_out, r) and A is (r, d_in), `refactorize` returns factors of the same
product in which A has orthonormal rows and B has orthogonal columns in order of descending norm: B = U Σ and A = Vᵀ of
the SVD. The d_out × d_in product is never formed. Leading dimensions are batch dimensions, so that one call processes
all sites of one shape.

The reference is the server step of FedSVD (Lee et al. 2025, arXiv 2505.12805), which computes the SVD of the dense BA.
The factors agree with it up to rounding, unless BA has a rank below r: a dense SVD then fills A with arbitrary
directions, while `refactorize` preserves the row space of A.

Precision: BᵀB and all r × r computations use float64. Other products of float32 factors on the CPU use float32, and all
remaining ones float64. Each result has the dtype of its input. The rows of a bfloat16 A are therefore orthonormal only
to about 1e-2, and rounding errors accumulate over rounds, so the server's factors should be float32. The device must
support float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsvd.errors import ModelError

# Up to this value of ‖AAᵀ - I‖_F, all eigenvalues of AAᵀ are in [0.9, 1.1]: its Cholesky factor exists and is accurate.
_MAX_ORTHONORMALITY_ERROR = 0.1

# Entries of B converted to float64 at a time on the CPU: 2 MiB fit in the cache and do not require new memory pages.
_CHUNK_ENTRIES = 2**18


@dataclass(frozen=True)
class Refactorized:
    """New factors of an unchanged product BA, and the change of coordinates that leads to them.

    Attributes:
        B: Shape (…, d_out, r), dtype of the old B. Its columns are orthogonal; their norms are the singular values, in
            descending order.
        A: Shape (…, r, d_in), dtype of the old A. Its rows are orthonormal.
        rotation: Shape (…, r, r), float64, with `A == rotation.mT @ A_old`. A gradient or momentum `m` with respect to
            the old B becomes `m @ rotation`. If the old rows were orthonormal, it is orthogonal and `B == B_old @
            rotation`. If the old A had rank below r, it does not produce the rows that were added to complete A.

    Example:
        >>> import torch
        >>> import fedsvd
        >>> new = fedsvd.refactorize(torch.ones(3, 1), torch.tensor([[0.0, 2.0]]))
        >>> new.A, new.rotation
        (tensor([[0., 1.]]), tensor([[0.5000]], dtype=torch.float64))
    """

    B: Tensor
    A: Tensor
    rotation: Tensor


@torch.no_grad()
def refactorize(B: Tensor, A: Tensor) -> Refactorized:
    """Refactorize BA into the factors of its SVD, without forming the product.

    If A is nearly orthonormal at every site (every round but the first), r × r Gram matrices suffice: with AAᵀ = LLᵀ
    and Lᵀ(BᵀB)L = V Σ² Vᵀ the new factors are B L V and Vᵀ L⁻¹ A, at a cost of O((d_out + d_in) r²). L corrects the
    drift of A's rows, so that rounding errors in their orthonormality do not accumulate. Otherwise the factors come
    from the QR decomposition A = RᵀQᵀ and the SVD of B Rᵀ.

    If B is rank-deficient or zero, the row space of A is preserved. If A is rank-deficient, its row space is completed
    to dimension r with directions of singular value zero. Singular values below 1e-7 of a site's largest have no
    relative accuracy; they are only known to be that small. Signs are fixed such that in each column of V the entry of
    largest magnitude is positive.

    Args:
        B: Shape (…, d_out, r), any floating-point dtype; d_out may be below r.
        A: Shape (…, r, d_in), with the leading dimensions and the device of B, and r <= d_in.

    Returns:
        New factors, detached, with the dtypes and device of the old ones; the inputs are not modified.

    Raises:
        ModelError: Shapes, dtypes or devices are incompatible, r exceeds d_in, or an entry is not finite.

    Example:
        >>> import torch
        >>> import fedsvd
        >>> B, A = torch.randn(48, 64, 8), torch.randn(48, 8, 32)  # 48 layers of one shape
        >>> new = fedsvd.refactorize(B, A)
        >>> torch.allclose(new.B @ new.A, B @ A, atol=1e-4)
        True
        >>> torch.allclose(new.A @ new.A.mT, torch.eye(8).expand(48, 8, 8), atol=1e-5)
        True
    """
    _check_factors(B, A)
    B_work, A_work = _to_product_dtype(B), _to_product_dtype(A)
    gram_A = (A_work @ A_work.mT).to(torch.float64)
    gram_B = _column_gram(B_work)
    nearly_orthonormal = torch.linalg.matrix_norm(gram_A - _identity_like(gram_A)) <= _MAX_ORTHONORMALITY_ERROR
    # A single device-to-host transfer selects the algorithm. It also catches overflow and NaN, which the QR branch
    # tells apart.
    if not bool(nearly_orthonormal.all() & gram_B.isfinite().all()):
        return _refactorize_by_qr(B, A)

    L = torch.linalg.cholesky_ex(gram_A).L
    # eigh sorts in ascending order. Negating the matrix gives descending order and, for B = 0, V = I: A is unchanged.
    V = _fix_signs(torch.linalg.eigh(-(L.mT @ gram_B @ L)).eigenvectors)
    rotation = torch.linalg.solve_triangular(L.mT, V, upper=True)
    new_B = B_work @ (L @ V).to(B_work.dtype)
    new_A = rotation.mT.to(A_work.dtype) @ A_work
    return Refactorized(B=new_B.to(B.dtype), A=new_A.to(A.dtype), rotation=rotation)


@torch.no_grad()
def with_positive_peaks(rows: Tensor) -> Tensor:
    """Return rows of which the entry of largest magnitude is positive: the sign of a singular vector is arbitrary."""
    return rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()


def orthonormal_rows(A: Tensor) -> Tensor:
    """Return an orthonormal basis of the row space of A, computed by QR of Aᵀ in float64.

    It is the Gram-Schmidt basis: row i of A has a non-negative component along row i of the result. If A is
    rank-deficient, the basis is completed to r rows and spans more than the row space of A.

    Args:
        A: Shape (…, r, d_in) with r <= d_in, any floating-point dtype.

    Returns:
        A tensor of shape (…, r, d_in) with the dtype and device of A.

    Raises:
        ModelError: A is not a floating-point matrix with r <= d_in, or contains a non-finite entry.

    Example:
        >>> import torch
        >>> import fedsvd
        >>> fedsvd.orthonormal_rows(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """
    _check_rows(A)
    _check_finite("A", A)
    return _positive_qr(A.to(torch.float64).mT)[0].mT.to(A.dtype).contiguous()


def _refactorize_by_qr(B: Tensor, A: Tensor) -> Refactorized:
    """Refactorize by QR and SVD in float64, for any factors with finite entries."""
    _check_finite("B", B)
    _check_finite("A", A)
    Q, R = _positive_qr(A.to(torch.float64).mT)
    BR = B.to(torch.float64) @ R.mT
    core = torch.linalg.qr(BR, mode="r").R
    # All r right singular vectors are wanted, even where d_out < r leaves the core with fewer rows.
    V = _fix_signs(torch.linalg.svd(core, full_matrices=True).Vh.mT)
    # If A is singular to the precision of its dtype, R has no inverse. Hence the pseudoinverse with this tolerance.
    rotation = torch.linalg.pinv(R, rtol=torch.finfo(A.dtype).eps * A.shape[-1]) @ V
    return Refactorized(B=(BR @ V).to(B.dtype), A=(V.mT @ Q.mT).to(A.dtype), rotation=rotation)


def _to_product_dtype(factor: Tensor) -> Tensor:
    # CUDA may be configured to compute float32 products in TF32, with three digits; batched products on the CPU have
    # full float32 precision.
    keeps_float32 = factor.dtype is torch.float32 and factor.device.type == "cpu"
    return factor if keeps_float32 else factor.to(torch.float64)


def _column_gram(B: Tensor) -> Tensor:
    """Return BᵀB in float64, shape (…, r, r)."""
    d_out, rank = B.shape[-2:]
    if B.device.type != "cpu" or B.dtype is torch.float64:
        B64 = B.to(torch.float64)
        return B64.mT @ B64
    grams = []
    for sites in torch.split(B.reshape(-1, d_out, rank), max(1, _CHUNK_ENTRIES // (d_out * rank))):
        sites64 = sites.to(torch.float64)
        grams.append(sites64.mT @ sites64)
    return torch.cat(grams).reshape(*B.shape[:-2], rank, rank)


def _positive_qr(X: Tensor) -> tuple[Tensor, Tensor]:
    """Return the QR decomposition with a non-negative diagonal of R, which is unique if X has full column rank."""
    Q, R = torch.linalg.qr(X)
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(X.dtype)
    return Q * signs.unsqueeze(-2), R * signs.unsqueeze(-1)


def _fix_signs(V: Tensor) -> Tensor:
    """Flip the columns of V such that their entry of largest magnitude is positive."""
    return V * V.gather(-2, V.abs().argmax(dim=-2, keepdim=True)).sign()


def _identity_like(gram: Tensor) -> Tensor:
    return torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def _check_factors(B: Tensor, A: Tensor) -> None:
    _check_rows(A)
    if not B.is_floating_point() or B.ndim != A.ndim or B.shape[-1] != A.shape[-2] or B.shape[:-2] != A.shape[:-2]:
        raise ModelError(
            f"B of shape {tuple(B.shape)} and dtype {B.dtype} is incompatible with A of shape {tuple(A.shape)}: "
            "expected floating-point B (…, d_out, r) and A (…, r, d_in) with equal leading dimensions and equal r. "
            "Stack only sites of one shape."
        )
    if B.device != A.device:
        raise ModelError(f"B is on {B.device} and A on {A.device}: expected the same device. Move one of them.")


def _check_rows(A: Tensor) -> None:
    if not A.is_floating_point() or A.ndim < 2 or A.shape[-2] < 1:
        raise ModelError(
            f"A has shape {tuple(A.shape)} and dtype {A.dtype}: expected a floating-point tensor (…, r, d_in) with "
            "r >= 1. Pass A as one matrix per site."
        )
    rank, d_in = A.shape[-2:]
    if rank > d_in:
        raise ModelError(
            f"A has r = {rank} rows of length d_in = {d_in}: at most {d_in} rows can be orthonormal. "
            f"Choose r <= {d_in} for this site."
        )


def _check_finite(name: str, factor: Tensor) -> None:
    finite = factor.isfinite()
    if not bool(finite.all()):
        raise ModelError(
            f"{name} of shape {tuple(factor.shape)} contains {int((~finite).sum())} entries that are NaN or infinite: "
            "all must be finite. Drop the update that introduced them, or lower the learning rate if training diverged."
        )

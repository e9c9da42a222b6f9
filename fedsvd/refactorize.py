"""The server step's mathematics: from (B, A) to (B', A') with the same product and orthonormal rows in A'.

Nothing here ever forms the d_out × d_in product. All functions take stacks: leading dimensions are sites of one shape.
Works in float64 inside and gives back what it was given, so that a thousand rounds drift no further than one cast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsvd.errors import FedSVDError

ORTHONORMAL_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Refactorized:
    """The outcome of `refactorize`.

    Attributes:
        B: Shape (…, d_out, r): orthogonal columns U Σ in order of falling norm.
        A: Shape (…, r, d_in): orthonormal rows.
        transform: Shape (…, r, r), float64: ``B' = B @ transform``. Where A came in with orthonormal rows this is the
            rotation V, and ``A' = Vᵀ A``: state that lives in B's coordinates rotates along by the same matrix.
    """

    B: Tensor
    A: Tensor
    transform: Tensor


def refactorize(B: Tensor, A: Tensor) -> Refactorized:
    """Refactorize stacks of products B A as their SVD would, at O((d_out + d_in) r²) a site.

    With A's rows orthonormal, the eigenvectors V of the Gram matrix BᵀB give the SVD ``B A = (B V)(Vᵀ A)``: the
    columns of B V are orthogonal with the singular values as norms. With other A, ``Aᵀ = Q R`` first turns it into that
    case: ``B A = (B Rᵀ) Qᵀ``. A's row space is kept in full even where B is zero or loses rank, which a plain SVD of
    the product would fill with arbitrary directions (Lee et al. 2025, arXiv 2505.12805, Section 3, gives the SVD form).

    Args:
        B: Shape (…, d_out, r).
        A: Shape (…, r, d_in) with r ≤ d_in; of full rank, or its rows are completed to r orthonormal ones.

    Raises:
        FedSVDError: Shapes that do not fit, r > d_in, or values that are not finite.
    """
    _check(B, A)
    wide_a, wide_b = A.to(torch.float64), B.to(torch.float64)
    gram = wide_b.mT @ wide_b
    if is_orthonormal(wide_a, ORTHONORMAL_TOLERANCE):
        rotation = transform = _descending_eigenvectors(gram)
        rows = rotation.mT @ wide_a
    else:
        q, r = torch.linalg.qr(wide_a.mT)
        rotation = _descending_eigenvectors(r @ gram @ r.mT)
        transform = r.mT @ rotation
        rows = rotation.mT @ q.mT
    return Refactorized((wide_b @ transform).to(B.dtype), rows.to(A.dtype), transform)


def orthonormal_rows(A: Tensor) -> Tensor:
    """Return an orthonormal basis of A's row span, shape (…, r, d_in); the same A always gives the same basis.

    Raises:
        FedSVDError: r > d_in, or values that are not finite.
    """
    _check_rows(A)
    q, r = torch.linalg.qr(A.to(torch.float64).mT)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    signs = torch.where(diagonal < 0, -1.0, 1.0).to(torch.float64)
    return (q * signs.unsqueeze(-2)).mT.contiguous().to(A.dtype)


def is_orthonormal(A: Tensor, tolerance: float = 1e-5) -> bool:
    """Tell whether every A Aᵀ in the stack is the identity to within ``tolerance`` in each entry."""
    wide = A.to(torch.float64)
    eye = torch.eye(A.shape[-2], dtype=torch.float64, device=A.device)
    return bool((wide @ wide.mT - eye).abs().amax() <= tolerance)


def _descending_eigenvectors(gram: Tensor) -> Tensor:
    """Eigenvectors in order of falling eigenvalue; each one's largest entry is positive, so that signs are settled."""
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(-1)
    largest = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def _check(B: Tensor, A: Tensor) -> None:
    if B.dim() < 2 or B.shape[:-2] != A.shape[:-2] or B.shape[-1] != A.shape[-2]:
        raise FedSVDError(
            f"B of shape {tuple(B.shape)} and A of shape {tuple(A.shape)} have no product B A; "
            "B must be (…, d_out, r) and A (…, r, d_in) with the same leading dimensions."
        )
    _check_rows(A)
    if not torch.isfinite(B).all():
        raise FedSVDError("B holds values that are not finite; nothing can be refactorized. Lower the learning rate.")


def _check_rows(A: Tensor) -> None:
    if A.shape[-2] > A.shape[-1]:
        raise FedSVDError(f"A of shape {tuple(A.shape)} cannot have orthonormal rows: r must not exceed d_in.")
    if not torch.isfinite(A).all():
        raise FedSVDError("A holds values that are not finite; nothing can be refactorized. Lower the learning rate.")

"""The tangent space of matrices of rank r at a product B A, in coordinates that do not depend on its factors.

Any factors with the same product, ``B M`` and ``M⁻¹ A``, have the same tangent space at B A, but their gradients scale
with them. With the orthonormal frames

    U = B (BᵀB + ε_B I)^(-½)        V = (AAᵀ + ε_A I)^(-½) A

the gradients gB = s G Aᵀ and gA = s Bᵀ G of a weight gradient G become the coordinates

    X = gB (AAᵀ + ε_A I)^(-½) = s G Vᵀ
    Y = (BᵀB + ε_B I)^(-½) gA (I - VᵀV) = s Uᵀ G (I - VᵀV)

of the tangent vector ``X V + U Y``. The two terms are orthogonal, so ``‖X‖² + ‖Y‖² = ‖X V + U Y‖²``: it is the
orthogonal projection of s G onto the tangent space, clipping (X, Y) clips the change of the weight, and isotropic noise
in (X, Y) is isotropic noise in the tangent space (PRISM, Wang and Zhang 2026, arXiv 2606.00944). A step along it in the
factors multiplies gB by ``(AAᵀ + ε_A I)^(-1)`` and gA by ``(BᵀB + ε_B I)^(-1)``, as in scaled gradient descent
(Tong et al. 2021, arXiv 2005.08898). ε is relative to the factor's mean squared singular value, so that it does not
depend on the scale either. B = 0 has no frame: U and Y are then zero, and X is the gradient of B alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsvd.lora.adapter import Adapter
from fedsvd.lora.peft_model import lora_sites
from fedsvd.lora.stacked import truncated_svd

_DAMPING = 1e-6


@dataclass(frozen=True)
class Frame:
    """The frames of one site, in float64.

    Attributes:
        U: Shape (d_out, r).
        V: Shape (r, d_in).
        inverse_root_b: ``(BᵀB + ε_B I)^(-½)``, shape (r, r); zero if B is.
        inverse_root_a: ``(AAᵀ + ε_A I)^(-½)``, shape (r, r).
        root_a: ``(AAᵀ + ε_A I)^½``, with ``root_a V = A``, shape (r, r).
    """

    U: Tensor
    V: Tensor
    inverse_root_b: Tensor
    inverse_root_a: Tensor
    root_a: Tensor


@torch.no_grad()
def frame(B: Tensor, A: Tensor) -> Frame:
    """Return the frames at B, shape (d_out, r), and A, shape (r, d_in)."""
    B64, A64 = B.double(), A.double()
    _, inverse_root_b = _roots(B64.mT @ B64)
    root_a, inverse_root_a = _roots(A64 @ A64.mT)
    return Frame(B64 @ inverse_root_b, inverse_root_a @ A64, inverse_root_b, inverse_root_a, root_a)


def step_and_retract(before: Adapter, after: Adapter) -> Adapter:
    """Return the best approximation of rank r of ``B A + X V + U Y`` at each site.

    The sum is ``[B (AAᵀ + ε_A I)^½ + X, U] [V; Y]`` of rank 2r, and its SVD is computed from these factors. The result
    is balanced as in FedSVD: the rows of A are orthonormal and B has the singular values.

    Args:
        before: The base point.
        after: An adapter with ``B + X`` and ``A + Y`` for B and A; its other parts are kept.
    """
    A, B = {}, {}
    for name, A0 in before.A.items():
        B0, at = before.B[name], frame(before.B[name], A0)
        X, Y = after.B[name].double() - B0.double(), after.A[name].double() - A0.double()
        left, right = torch.cat([B0.double() @ at.root_a + X, at.U], dim=1), torch.cat([at.V, Y])
        new_B, new_A = truncated_svd(left, right, len(A0))
        B[name], A[name] = new_B.to(B0.dtype), new_A.to(A0.dtype)
    return after.with_parts({"A": A, "B": B})


@dataclass(frozen=True)
class TangentMap:
    """The map of gradients to tangent coordinates, for `fedsvd.privacy.gradient_maps`.

    One step from the base point then moves the parameters to ``B - η X`` and ``A - η Y``, which `step_and_retract`
    reads.

    Attributes:
        of_a: By ``id`` of each parameter A: ``(BᵀB + ε_B I)^(-½)`` and V, in the dtype of the parameter.
        of_b: By ``id`` of each parameter B: ``(AAᵀ + ε_A I)^(-½)``.
    """

    of_a: dict[int, tuple[Tensor, Tensor]]
    of_b: dict[int, Tensor]

    @classmethod
    def of_model(cls, model: nn.Module) -> TangentMap:
        """Return the map at a model's current factors."""
        of_a, of_b = {}, {}
        for site in lora_sites(model).values():
            at = frame(site.B.detach(), site.A.detach())
            of_a[id(site.A)] = at.inverse_root_b.to(site.A), at.V.to(site.A)
            of_b[id(site.B)] = at.inverse_root_a.to(site.B)
        return cls(of_a, of_b)

    def before_clipping(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Map each example's gradients of A and B, shape (batch, *parameter), to Y and X."""
        return [self._coordinates(id(p), gradient) for p, gradient in zip(parameters, gradients, strict=True)]

    def after_noise(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Remove the noise that is not in the tangent space: from Y, what lies in the row space of V."""
        mapped = []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if id(parameter) in self.of_a:
                inverse_root, V = self.of_a[id(parameter)]
                kept = _remove_rows(gradient, V)
                # Without a frame U, Y has no effect.
                mapped.append(kept if bool(inverse_root.any()) else torch.zeros_like(kept))
            else:
                mapped.append(gradient)
        return mapped

    def _coordinates(self, parameter: int, gradient: Tensor) -> Tensor:
        if parameter in self.of_b:
            return gradient @ self.of_b[parameter]
        if parameter in self.of_a:
            inverse_root, V = self.of_a[parameter]
            return _remove_rows(inverse_root @ gradient, V)
        return gradient


def _remove_rows(gradient: Tensor, V: Tensor) -> Tensor:
    """Return ``gradient (I - VᵀV)``."""
    return gradient - (gradient @ V.mT) @ V


def _roots(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(gram + ε I)^½`` and ``(gram + ε I)^(-½)``, or zeros if the matrix is zero."""
    values, vectors = torch.linalg.eigh(gram)
    damped = values.clamp(min=0) + _DAMPING * values.mean()
    if not bool(damped.max() > 0):
        return torch.zeros_like(gram), torch.zeros_like(gram)
    roots = damped.sqrt()
    return (vectors * roots) @ vectors.mT, (vectors / roots) @ vectors.mT

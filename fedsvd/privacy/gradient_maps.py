"""Linear maps of per-example gradients before clipping, and of the noised sum after it.

A step of DP-SGD with a map T, in place of the plain ``Σ clip(gᵢ) + N(0, σ² C²)``, releases

    S (Σ clip(T gᵢ) + N(0, σ² C²))

with another map S. It costs the same ε. Both maps are fixed before the round reads private data: they depend on public
text and on the global model alone, which earlier rounds have released. (1) Given T, an example contributes
``clip(T gᵢ)``, whose norm is at most C whatever T is, so the sum has sensitivity C as before. (2) S is post-processing,
if one party applies it to all of the noise.
(3) That T depends on earlier releases is adaptive composition, for which the accountants hold (Dwork et al. 2010,
*Boosting and Differential Privacy*; Rogers et al. 2016, arXiv 1605.08294, for choices of the next mechanism).

Clients that share the noise (`fedsvd.privacy.noise_share`) apply T only, and the server applies one S to the mean.
Where S removes directions, a client that applied it would add no noise along them. If the maps of two clients differed,
however little, the others' noise would lack a direction that one client's gradients have, and this client's share alone
would protect it. The maps T may differ: (1) holds for each client's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class GradientMap(Protocol):
    """A pair of linear maps of the gradients of all trained parameters."""

    def before_clipping(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Apply T.

        Args:
            parameters: The trained parameters, in the order of the gradients.
            gradients: Shape (batch, *parameter) each.

        Returns:
            Tensors of the same shapes; the gradients are not modified.
        """

    def after_noise(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Apply S; arguments and result as in `before_clipping`, with a batch of one noised sum."""


def map_before_clipping(
    maps: Sequence[GradientMap], parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Apply T of each map, in their order."""
    mapped = list(gradients)
    for gradient_map in maps:
        mapped = gradient_map.before_clipping(parameters, mapped)
    return mapped


def map_gradients(maps: Sequence[GradientMap], parameters: Sequence[nn.Parameter]) -> None:
    """Apply T of each map, in their order, to ``parameter.grad``, where a batch has one gradient."""
    gradients = [_gradient(parameter).unsqueeze(0) for parameter in parameters]
    _set_gradients(parameters, map_before_clipping(maps, parameters, gradients))


def map_after_noise(
    maps: Sequence[GradientMap], parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Apply S of each map, in reverse order, to one noised sum for each parameter, in a batch of one."""
    mapped = list(gradients)
    for gradient_map in reversed(maps):
        mapped = gradient_map.after_noise(parameters, mapped)
    return mapped


def map_noised_gradients(maps: Sequence[GradientMap], parameters: Sequence[nn.Parameter]) -> None:
    """Apply S of each map, in reverse order, to ``parameter.grad``."""
    gradients = [_gradient(parameter).unsqueeze(0) for parameter in parameters]
    _set_gradients(parameters, map_after_noise(maps, parameters, gradients))


def _set_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.squeeze(0)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@dataclass(frozen=True)
class BeforeClipping:
    """The map T of another map, without its S, which the server applies to the mean of all clients.

    Attributes:
        map: The other map.
    """

    map: GradientMap

    def before_clipping(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Apply T of the other map; see `GradientMap`."""
        return self.map.before_clipping(parameters, gradients)

    def after_noise(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the noised sum as it is; see `GradientMap`."""
        return list(gradients)


@dataclass(frozen=True)
class Projection:
    """The projection ``T = S = I - Qᵀ Q`` onto what is orthogonal to K directions.

    Attributes:
        directions: Rows of Q by ``id`` of the parameter, shape (K, *parameter); orthonormal over all parameters
            together. Parameters without rows are unchanged.
    """

    directions: dict[int, Tensor]

    @classmethod
    def orthogonal_to(cls, parameters: Sequence[nn.Parameter], vectors: Sequence[Tensor]) -> Projection:
        """Build the projection from vectors that need not be independent.

        Args:
            parameters: The parameters that the vectors cover.
            vectors: Shape (vectors, *parameter) for each parameter.
        """
        flat = torch.cat([vector.flatten(1) for vector in vectors], dim=1).double()
        _, values, rows = torch.linalg.svd(flat, full_matrices=False)
        basis = rows[values > 1e-6 * values.max()].to(vectors[0].dtype)
        parts = torch.split(basis, [parameter.numel() for parameter in parameters], dim=1)
        return cls({id(p): part.reshape(-1, *p.shape) for p, part in zip(parameters, parts, strict=True)})

    def before_clipping(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Subtract each gradient's components along the directions; see `GradientMap`."""
        rows = [self.directions.get(id(parameter)) for parameter in parameters]
        pairs = list(zip(gradients, rows, strict=True))
        products = [g.flatten(1) @ q.flatten(1).mT for g, q in pairs if q is not None]
        components = torch.stack(products).sum(dim=0)
        return [g if q is None else g - torch.tensordot(components, q, dims=1) for g, q in pairs]

    def after_noise(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Project the noised sum too, which removes the noise along the directions; see `GradientMap`."""
        return self.before_clipping(parameters, gradients)


@dataclass(frozen=True)
class Preconditioning:
    """The map ``T g = g M`` and ``S g = g M``: plain SGD on A' where ``A = A' M``.

    Attributes:
        matrices: M by ``id`` of the parameter A, symmetric, shape (d_in, d_in). Other parameters are unchanged.
    """

    matrices: dict[int, Tensor]

    def before_clipping(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of A'; see `GradientMap`."""
        pairs = ((g, self.matrices.get(id(p))) for p, g in zip(parameters, gradients, strict=True))
        return [g if matrix is None else g @ matrix for g, matrix in pairs]

    def after_noise(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the change of A that belongs to a change of A'; see `GradientMap`."""
        return self.before_clipping(parameters, gradients)

"""How a factor travels to a client: in full, as a rotation of what the client holds, as indices, or not at all.

Refactorizing moves A within its own span: after any number of rounds it is ``Cᵀ A₀`` with one r × r matrix C, the
product of all rounds' rotations. A client that holds the origin A₀, be it that it drew it from the seed, computed it
from indices, or was sent it in an earlier round, needs C alone. Both ends compute ``Cᵀ A₀`` in float64 from the same
numbers, so that rounding does not add up over rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsvd.lora.adapter import Part

# Largest deviation, relative to a factor's largest entry, that a rotated origin may have from the factor itself.
ROTATION_TOLERANCE = 1e-6

FACTOR_PARTS: tuple[Part, ...] = ("A", "B")


@dataclass(frozen=True)
class FactorVersion:
    """Where a factor stands, seen from where it started.

    Attributes:
        part: A or B.
        version: The round after which the factor was last replaced rather than rotated; 0 for the start.
        origin: What it was then, by site.
        rotation: C by site, shape (r, r), float64; None where it has not moved since.
    """

    part: Part
    version: int
    origin: Mapping[str, Tensor]
    rotation: Mapping[str, Tensor] | None = None

    @property
    def current(self) -> dict[str, Tensor]:
        """The factor as both ends compute it."""
        return rotate_factor(self.part, self.origin, self.rotation)

    def after(self, factor: Mapping[str, Tensor], rotation: Mapping[str, Tensor] | None, server_round: int) -> FactorVersion:
        """Return where the factor stands after a round that left it as ``factor``.

        Args:
            factor: Its new value.
            rotation: How it was rotated, as `fedsvd.methods.Step` has it; None where it was not, or was replaced.
            server_round: The round.
        """
        if rotation is not None:
            total = {
                name: R.double() if self.rotation is None else self.rotation[name] @ R.double()
                for name, R in rotation.items()
            }
            moved = replace(self, rotation=total)
            if _agree(moved.current, factor):
                return moved
        elif _agree(self.current, factor, exactly=True):
            return self
        return FactorVersion(self.part, server_round, dict(factor))


def rotate_factor(part: Part, origin: Mapping[str, Tensor], rotation: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return ``Cᵀ A₀`` for A, ``B₀ C`` for B, in the dtype of the origin."""
    if rotation is None:
        return dict(origin)
    result = {}
    for name, start in origin.items():
        C = rotation[name].to(start.device, torch.float64)
        turned = C.mT @ start.double() if part == "A" else start.double() @ C
        result[name] = turned.to(start.dtype)
    return result


def _agree(one: Mapping[str, Tensor], other: Mapping[str, Tensor], *, exactly: bool = False) -> bool:
    if exactly:
        return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    return all(
        bool((tensor - other[name]).abs().max() <= ROTATION_TOLERANCE * other[name].abs().max()) for name, tensor in one.items()
    )

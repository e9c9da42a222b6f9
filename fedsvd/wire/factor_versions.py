"""Versions of factors: what determines how a factor is sent to a client.

A factor is sent in full, as a rotation of the factor that the client has cached, as indices, or not at all.

Refactorization moves A within its own row space: after any number of rounds, A is ``Cᵀ A₀`` for one r × r matrix C, the
product of the rotations of all rounds. A client that has the origin A₀ (drawn from the seed, computed from indices, or
received in an earlier round) needs only C. Server and client compute ``Cᵀ A₀`` in float64 from the same numbers, so
rounding errors do not accumulate over rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsvd.lora.adapter import Part

# Largest deviation of a rotated origin from the factor itself, relative to the factor's largest entry.
ROTATION_TOLERANCE = 1e-6

FACTOR_PARTS: tuple[Part, ...] = ("A", "B")


@dataclass(frozen=True)
class FactorVersion:
    """A factor, stored as its last replacement (the origin) and the rotation since then.

    Attributes:
        part: A or B.
        version: Round after which the factor was last replaced rather than rotated; 0 for the initial factor.
        origin: The factor at that version, by site.
        rotation: C by site, shape (r, r), float64; None if the factor has not been rotated since.
    """

    part: Part
    version: int
    origin: Mapping[str, Tensor]
    rotation: Mapping[str, Tensor] | None = None

    @property
    def current(self) -> dict[str, Tensor]:
        """The current factor, as server and clients compute it."""
        return rotate_factor(self.part, self.origin, self.rotation)

    def after(
        self, factor: Mapping[str, Tensor], rotation: Mapping[str, Tensor] | None, server_round: int
    ) -> FactorVersion:
        """Return the factor's version after a round.

        Args:
            factor: The factor's value after the round.
            rotation: The round's rotation, as in `fedsvd.methods.Step`; None if the factor was unchanged or replaced.
            server_round: The round.

        Returns:
            This version, with the rotation added, if that reproduces ``factor``; else a new version.
        """
        if rotation is not None:
            total = {
                name: R.double() if self.rotation is None else self.rotation[name] @ R.double()
                for name, R in rotation.items()
            }
            rotated = replace(self, rotation=total)
            if _agree(rotated.current, factor):
                return rotated
        elif _agree(self.current, factor, exactly=True):
            return self
        return FactorVersion(self.part, server_round, dict(factor))


def rotate_factor(part: Part, origin: Mapping[str, Tensor], rotation: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return ``Cᵀ A₀`` for A or ``B₀ C`` for B, in the dtype of the origin."""
    if rotation is None:
        return dict(origin)
    result = {}
    for name, start in origin.items():
        C = rotation[name].to(start.device, torch.float64)
        product = C.mT @ start.double() if part == "A" else start.double() @ C
        result[name] = product.to(start.dtype)
    return result


def _agree(computed: Mapping[str, Tensor], factor: Mapping[str, Tensor], *, exactly: bool = False) -> bool:
    if exactly:
        return all(torch.equal(tensor, factor[name]) for name, tensor in computed.items())
    return all(
        bool((tensor - factor[name]).abs().max() <= ROTATION_TOLERANCE * factor[name].abs().max())
        for name, tensor in computed.items()
    )

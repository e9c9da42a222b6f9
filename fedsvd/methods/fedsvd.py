"""FedSVD: B is averaged, then B A is refactorized so that the rows of A are orthonormal."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsvd.errors import ConfigError
from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.lora.batched import refactorize_sites
from fedsvd.lora.shrinkage import shrink_columns
from fedsvd.methods.aggregate import Replies, average, mean_noise_std
from fedsvd.methods.method import State, Step, Traits
from fedsvd.methods.options import check_choice, check_positive_int

SHRINKAGES = ("none", "optimal")
_ORTHONORMAL_B = ("orthonormal", "weight_svd", "public_jacobian")


@dataclass(frozen=True)
class FedSVD:
    """FedSVD (Lee et al., NeurIPS 2025, arXiv 2505.12805).

    ``B̄ = Σ pₖ Bₖ``, then with the SVD ``B̄ A = U Σ Vᵀ``: ``A ← Vᵀ`` and ``B ← U Σ``. The product is unchanged and the
    rows of A are orthonormal. Only B is trained, so the mean is exact and noise is never multiplied by noise.

    Attributes:
        refactorize_every: Number of rounds between refactorizations; 1 refactorizes after each round.
        pivot: The factor to train in each round, as a sequence that repeats. ``B`` is FedSVD as published; ``BAAA``
            trains B for one round, then A for three, and so on. A is trained with ``B = U``, B with ``A = Vᵀ``: one
            factor changes at a time and the other is orthonormal. The mean remains exact, noise is never multiplied by
            noise, and both the row and the column space adapt. A sequence that starts with A requires ``init_a`` =
            ``zeros`` and an orthonormal initial B; ``A`` alone is FedSVD with the factors exchanged.
        shrinkage: ``none``, or ``optimal`` to broadcast B with its singular values shrunk, which removes what the
            differential privacy noise, whose standard deviation is known, has added to them (see
            `fedsvd.lora.shrinkage`). The sum of all updates is stored unshrunk, so that shrinkage does not accumulate
            over rounds.
        init_a: Initialization of A.
        init_b: Initialization of B.
    """

    refactorize_every: int = 1
    pivot: str = "B"
    shrinkage: str = "none"
    init_a: str = "orthonormal"
    init_b: str = "zeros"

    def __post_init__(self) -> None:
        check_positive_int("refactorize_every", self.refactorize_every)
        if not re.fullmatch("[AB]+", str(self.pivot)):
            raise ConfigError(
                f"method.pivot = {self.pivot!r} is invalid: list the factor to train in each round, as in B, BA, BAAA "
                "or A."
            )
        if self.pivot.startswith("A"):
            _check_starts_with_a(self.pivot, self.init_a, self.init_b)
        check_choice("shrinkage", self.shrinkage, SHRINKAGES)
        if self.shrinkage != "none" and ("A" in self.pivot or self.refactorize_every > 1 or self.init_a == "kaiming"):
            raise ConfigError(
                f"method.shrinkage = {self.shrinkage!r} requires isotropic noise, hence an A that is orthonormal in "
                "every round and only one trained factor: set method.pivot=B, method.refactorize_every=1 and "
                "method.init_a to a value other than kaiming."
            )

    @property
    def traits(self) -> Traits:
        """Allow lower client ranks (which get the leading singular vectors) unless A is trained or B is shrunk."""
        return Traits(heterogeneous="A" not in self.pivot and self.shrinkage == "none")

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return the factor that ``pivot`` names for this round."""
        return frozenset({"B"}) if self._trains_b(server_round) else frozenset({"A"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average, and refactorize B A every ``refactorize_every`` rounds and whenever the trained factor changes."""
        averaged = average(adapter, replies)
        if self.shrinkage != "none":
            return _shrinkage_step(adapter, averaged, mean_noise_std(replies), state)
        trains_b, trains_b_next = self._trains_b(server_round), self._trains_b(server_round + 1)
        if trains_b == trains_b_next and server_round % self.refactorize_every:
            return Step(averaged)
        refactorized, rotations = refactorize_sites(averaged, of_rows=trains_b_next)
        if trains_b != trains_b_next:
            return Step(refactorized)
        return Step(refactorized, {"A" if trains_b_next else "B": rotations})

    def _trains_b(self, server_round: int) -> bool:
        return self.pivot[(server_round - 1) % len(self.pivot)] == "B"


def _check_starts_with_a(pivot: str, init_a: str, init_b: str) -> None:
    if init_a != "zeros" or init_b not in _ORTHONORMAL_B:
        raise ConfigError(
            f"method.pivot = {pivot} is not possible with method.init_a = {init_a} and method.init_b = {init_b}: A is "
            "trained first, and has no gradient where B is zero. Set method.init_a=zeros and method.init_b to one of "
            f"{', '.join(_ORTHONORMAL_B)}, or start method.pivot with B."
        )


def _shrinkage_step(before: Adapter, averaged: Adapter, noise_std: float, state: State) -> Step:
    """Add the mean update to the unshrunk sum, refactorize the sum, and return it with shrunk singular values."""
    unshrunk = state.get("unshrunk", before.B)
    # Clients started from the shrunk B; their update applies to the unshrunk one.
    updated = {name: unshrunk[name] + (B - before.B[name]) for name, B in averaged.B.items()}
    refactorized, rotations = refactorize_sites(averaged.with_parts({"B": updated}))
    variance = _noise_variance(state, averaged) + noise_std**2
    shrunk = {name: shrink_columns(B, float(variance) ** 0.5) for name, B in refactorized.B.items()}
    new_state = {"unshrunk": dict(refactorized.B), "noise": {"variance": variance}}
    return Step(refactorized.with_parts({"B": shrunk}), {"A": rotations}, new_state)


def _noise_variance(state: State, adapter: Adapter) -> Tensor:
    """Return the variance of the noise accumulated in previous rounds."""
    variance = state.get("noise", {}).get("variance")
    return torch.zeros((), dtype=torch.float64, device=adapter.device) if variance is None else variance

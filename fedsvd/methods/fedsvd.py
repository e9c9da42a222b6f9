"""FedSVD: B averaged, then B A refactorized so that A's rows are orthonormal."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsvd.errors import ConfigError
from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.lora.shrinkage import shrink_columns
from fedsvd.methods.aggregate import Replies, average, mean_noise_std, refactorize_sites
from fedsvd.methods.method import State, Step, Traits
from fedsvd.methods.options import check_choice, check_initialisation, check_whole

SHRINKAGES = ("none", "optimal")


@dataclass(frozen=True)
class FedSVD:
    """FedSVD (Lee et al., NeurIPS 2025, arXiv 2505.12805).

    ``B̄ = Σ pₖ Bₖ``, then with the SVD ``B̄ A = U Σ Vᵀ``: ``A ← Vᵀ`` and ``B ← U Σ``. The product is unchanged, A's rows
    are orthonormal, and only B is ever trained, so averages stay exact and noise meets no noise.

    Attributes:
        refactorize_every: Refactorize after every so many rounds (1: after each).
        pivot: The factor that is trained in each round, over and over: ``B`` is FedSVD as published; with ``BAAA`` a
            round of B is followed by three of A, and so on. A is trained against ``B = U``, B against ``A = Vᵀ``: one
            factor moves at a time and the other is orthonormal, so means stay exact, noise is never multiplied, and
            both spaces adapt.
        shrinkage: ``optimal`` hands out B with its singular values shrunk by what differential privacy's noise, whose
            size is known, has added to them (see `fedsvd.lora.shrinkage`). The sum of all updates itself is kept as it
            is: what is shrunk once is not shrunk again in the next round.
        init_a: How A starts.
        init_b: How B starts.
    """

    refactorize_every: int = 1
    pivot: str = "B"
    shrinkage: str = "none"
    init_a: str = "orthonormal"
    init_b: str = "zeros"

    def __post_init__(self) -> None:
        check_initialisation(self.init_a, self.init_b)
        check_whole("refactorize_every", self.refactorize_every, 1, "1 (after each round)")
        if not re.fullmatch("B[AB]*", str(self.pivot)):
            raise ConfigError(
                f"method.pivot = {self.pivot!r} is not allowed: name the factor of each round, from the first one, "
                "which is B's (B starts at zero, and A learns nothing against that): B, BA, BAAA, …"
            )
        check_choice("shrinkage", self.shrinkage, SHRINKAGES)
        if self.shrinkage != "none" and ("A" in self.pivot or self.refactorize_every > 1 or self.init_a == "kaiming"):
            raise ConfigError(
                f"method.shrinkage = {self.shrinkage!r} needs noise of one size in all directions, so an A that is "
                "orthonormal in every round and one factor that is trained: set method.pivot=B, "
                "method.refactorize_every=1 and a method.init_a other than kaiming."
            )

    @property
    def traits(self) -> Traits:
        """Clients of lower ranks take the strongest directions, where these stay what they are."""
        return Traits(heterogeneous="A" not in self.pivot and self.shrinkage == "none")

    def trains(self, server_round: int) -> frozenset[Factor]:
        """B, or, after a pivot, A."""
        return frozenset({"B"}) if self._trains_b(server_round) else frozenset({"A"})

    def uplink(self, server_round: int) -> frozenset[Factor]:
        """What is trained."""
        return self.trains(server_round)

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average; every ``refactorize_every`` rounds, and where the factors change roles, refactorize B A."""
        averaged = average(adapter, replies)
        if self.shrinkage != "none":
            return _shrunk(adapter, averaged, mean_noise_std(replies), state)
        before, after = self._trains_b(server_round), self._trains_b(server_round + 1)
        if before == after and server_round % self.refactorize_every:
            return Step(averaged)
        refactorized, rotations = refactorize_sites(averaged, of_rows=after)
        if before != after:
            return Step(refactorized)
        return Step(refactorized, {"A" if after else "B": rotations})

    def _trains_b(self, server_round: int) -> bool:
        return self.pivot[(server_round - 1) % len(self.pivot)] == "B"


def _shrunk(before: Adapter, averaged: Adapter, noise_std: float, state: State) -> Step:
    """Add the mean update to the unshrunk sum, refactorize that, and hand out its shrunk form."""
    unshrunk = state.get("unshrunk", before.B)
    # Clients started from the shrunk B: their update is added to what it was shrunk from.
    moved = {name: unshrunk[name] + (B - before.B[name]) for name, B in averaged.B.items()}
    whole, rotations = refactorize_sites(averaged.with_parts({"B": moved}))
    variance = _variance(state, averaged) + noise_std**2
    shrunk = {name: shrink_columns(B, float(variance) ** 0.5) for name, B in whole.B.items()}
    kept = {"unshrunk": dict(whole.B), "noise": {"variance": variance}}
    return Step(whole.with_parts({"B": shrunk}), {"A": rotations}, kept)


def _variance(state: State, adapter: Adapter) -> Tensor:
    held = state.get("noise", {}).get("variance")
    return torch.zeros((), dtype=torch.float64, device=adapter.device) if held is None else held

"""FLoRA: the clients' factors are stacked, merged into the frozen weight, and reinitialized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.errors import ConfigError
from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.lora.initialization import initialize_factors
from fedsvd.lora.stacked import merge
from fedsvd.methods.aggregate import Replies, average, stack_products
from fedsvd.methods.method import State, Step, Traits

_INIT_A_CHOICES = ("kaiming", "orthonormal")


@dataclass(frozen=True)
class FLoRA:
    """FLoRA (Wang et al., NeurIPS 2024, arXiv 2409.05976, Section 3).

    ``W ← W + Σ pₖ BₖAₖ = W + [p₁B₁ … pₙBₙ] [A₁; …; Aₙ]``: stacking gives the exact mean of the products, even for
    clients with different ranks. Each round starts from new factors.

    Attributes:
        init_a: Initialization of A in each round: ``kaiming`` or ``orthonormal``.
        init_b: Initialization of B in each round: ``zeros``, the only value allowed. With any other value, the initial
            product would be added to the frozen weight in each round.
        seed: Seed of the new factors, combined with the round number.
    """

    init_a: str = "kaiming"
    init_b: str = "zeros"
    seed: int = 0
    traits: ClassVar[Traits] = Traits(linear=False, heterogeneous=True, merges=True)

    def __post_init__(self) -> None:
        if self.init_a not in _INIT_A_CHOICES or self.init_b != "zeros":
            raise ConfigError(
                f"method.init_a = {self.init_a!r} with method.init_b = {self.init_b!r} is invalid with method=flora, "
                f"which draws new factors in each round: set method.init_a to {' or '.join(_INIT_A_CHOICES)} and "
                "method.init_b to zeros."
            )

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return both factors."""
        return frozenset({"A", "B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Merge the stacked factors into the frozen weight, and draw new factors."""
        left, right = stack_products(replies)
        merged = merge(average(adapter, replies, only=["head"]), left, right)
        seed = self.seed * 1_000_003 + server_round
        drawn = initialize_factors(adapter, init_a=self.init_a, init_b=self.init_b, seed=seed)
        return Step(merged.with_parts({"A": drawn.A, "B": drawn.B}))

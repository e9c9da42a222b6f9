"""RoLoRA: B and A are trained and averaged in alternating rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.methods.aggregate import Replies, average
from fedsvd.methods.method import State, Step, Traits


@dataclass(frozen=True)
class RoLoRA:
    """RoLoRA (Chen et al., NeurIPS 2025, arXiv 2502.01755, Algorithm 1).

    In odd rounds ``B ← Σ pₖ Bₖ`` with A frozen, in even rounds ``A ← Σ pₖ Aₖ`` with B frozen. Only one factor changes
    at a time, so each mean is exact, and both the row and the column space adapt.
    """

    init_a: str = "kaiming"
    init_b: str = "zeros"
    traits: ClassVar[Traits] = Traits()

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return B in odd rounds and A in even rounds."""
        return frozenset({"B"}) if server_round % 2 else frozenset({"A"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average the trained factor."""
        return Step(average(adapter, replies))

"""FFA-LoRA: A is frozen at its initial value, B is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.methods.aggregate import Replies, average
from fedsvd.methods.method import State, Step, Traits


@dataclass(frozen=True)
class FFALoRA:
    """FFA-LoRA (Sun et al., ICLR 2024, arXiv 2403.12313, Section 3).

    ``B ← Σ pₖ Bₖ``, where pₖ is client k's share of the examples. A is fixed, so the mean of the products is the
    product of the means, and noise in B is never multiplied by noise in A.
    """

    init_a: str = "kaiming"
    init_b: str = "zeros"
    traits: ClassVar[Traits] = Traits(heterogeneous=True)

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return B."""
        return frozenset({"B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average B."""
        return Step(average(adapter, replies))

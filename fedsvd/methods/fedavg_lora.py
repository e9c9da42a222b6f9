"""FedAvg with LoRA: A and B are trained, and averaged separately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.methods.aggregate import Replies, average
from fedsvd.methods.method import State, Step, Traits


@dataclass(frozen=True)
class FedAvgLoRA:
    """FedAvg of both factors (McMahan et al. 2017, arXiv 1602.05629; with LoRA: FedIT, arXiv 2305.05644).

    ``A ← Σ pₖ Aₖ`` and ``B ← Σ pₖ Bₖ``. The product of these means is not the mean of the products BₖAₖ. The other
    methods avoid this error and, under differential privacy, the product of two noise terms.
    """

    init_a: str = "kaiming"
    init_b: str = "zeros"
    traits: ClassVar[Traits] = Traits()

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return both factors."""
        return frozenset({"A", "B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average A and B."""
        return Step(average(adapter, replies))

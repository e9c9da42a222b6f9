"""FedSA-LoRA: A is averaged, B stays with each client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.methods.aggregate import Replies, average
from fedsvd.methods.method import State, Step, Traits


@dataclass(frozen=True)
class FedSALoRA:
    """FedSA-LoRA (Guo et al., ICLR 2025, arXiv 2410.01463, Section 3).

    Clients train both factors. The server computes ``A ← Σ pₖ Aₖ``, and each Bₖ stays with its client. There are as
    many models as clients: reported metrics are means over the clients' models, and the saved adapter has B = 0.
    """

    init_a: str = "kaiming"
    init_b: str = "zeros"
    traits: ClassVar[Traits] = Traits(personal=frozenset({"B"}))

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return both factors."""
        return frozenset({"A", "B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average A."""
        return Step(average(adapter, replies))

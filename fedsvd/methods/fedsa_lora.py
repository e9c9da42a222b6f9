"""FedSA-LoRA: A shared, B kept at home."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.methods.aggregate import Replies, average
from fedsvd.methods.method import State, Step, Traits
from fedsvd.methods.options import check_initialisation


@dataclass(frozen=True)
class FedSALoRA:
    """FedSA-LoRA (Guo et al., ICLR 2025, arXiv 2410.01463, Section 3).

    Clients train both factors; ``A ← Σ pₖ Aₖ``, and each Bₖ stays where it was trained. There are as many models as
    clients: what is reported is the mean over the clients' own, and the adapter that is saved has a B of zeros.
    """

    init_a: str = "kaiming"
    init_b: str = "zeros"
    traits: ClassVar[Traits] = Traits(personal=frozenset({"B"}))

    def __post_init__(self) -> None:
        check_initialisation(self.init_a, self.init_b)

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Both factors."""
        return frozenset({"A", "B"})

    def uplink(self, server_round: int) -> frozenset[Factor]:
        """A only."""
        return frozenset({"A"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average A."""
        return Step(average(adapter, replies))

"""FFA-LoRA: A frozen where it started, B averaged."""

from __future__ import annotations

from dataclasses import dataclass

from fedsvd.adapter import Adapter, Factor
from fedsvd.aggregate import Replies, average
from fedsvd.methods.options import check_initialisation, must_send_a


@dataclass(frozen=True)
class FFALoRA:
    """FFA-LoRA (Sun et al., ICLR 2024, arXiv 2403.12313, Section 3).

    ``B ← Σ pₖ Bₖ`` with pₖ the clients' shares of the examples; A stays as drawn, so the mean of the products is the
    product of the means, and noise put into B is never multiplied by noise in A.
    """

    init_a: str = "kaiming"
    init_b: str = "zeros"

    def __post_init__(self) -> None:
        check_initialisation(self.init_a, self.init_b)

    @property
    def linear(self) -> bool:
        """The mean is all it needs."""
        return True

    def trains(self, server_round: int) -> frozenset[Factor]:
        """B only."""
        return frozenset({"B"})

    def uplink(self, server_round: int) -> frozenset[Factor]:
        """B only."""
        return frozenset({"B"})

    def downlink(self, server_round: int) -> frozenset[Factor]:
        """B only, where every client can draw the frozen A from the experiment's seed."""
        return frozenset({"A", "B"}) if must_send_a(self.init_a) else frozenset({"B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int) -> Adapter:
        """Average B."""
        return average(adapter, replies)

"""Fed-SB: only a small square matrix between fixed factors is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.errors import ConfigError
from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.methods.aggregate import Replies, average
from fedsvd.methods.method import State, Step, Traits
from fedsvd.methods.options import check_initialisation


@dataclass(frozen=True)
class FedSB:
    """Fed-SB (Singhal et al. 2025, arXiv 2502.15436, Section 3).

    ``ΔW = scale · B C A`` with A and B fixed and ``C ← Σ pₖ Cₖ`` of shape (r, r), which starts at zero: the mean is
    exact, and the traffic is r² numbers a site. The paper takes the fixed factors from the SVD of the first gradient of
    full fine-tuning, which under differential privacy would have to be paid for. Here they come from the frozen weight
    (``weight_svd``) or from the seed (``orthonormal``), and cost nothing.
    """

    init_a: str = "weight_svd"
    init_b: str = "weight_svd"
    traits: ClassVar[Traits] = Traits(core=True)

    def __post_init__(self) -> None:
        check_initialisation(self.init_a, self.init_b)
        if self.init_b == "zeros":
            raise ConfigError(
                "method.init_b = 'zeros' is not possible with method=fed_sb, whose B never moves: choose kaiming, "
                "orthonormal or weight_svd."
            )

    def trains(self, server_round: int) -> frozenset[Factor]:
        """The core only."""
        return frozenset({"core"})

    def uplink(self, server_round: int) -> frozenset[Factor]:
        """The core only."""
        return frozenset({"core"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average the core."""
        return Step(average(adapter, replies))

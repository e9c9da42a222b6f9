"""Fed-SB: clients train only a small square matrix between fixed factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.errors import ConfigError
from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.methods.aggregate import Replies, average
from fedsvd.methods.method import State, Step, Traits


@dataclass(frozen=True)
class FedSB:
    """Fed-SB (Singhal et al. 2025, arXiv 2502.15436, Section 3).

    ``ΔW = scale · B C A`` with A and B fixed and ``C ← Σ pₖ Cₖ`` of shape (r, r), initialized to zero. The mean is
    exact, and a client transfers r² numbers per site. The paper takes the fixed factors from the SVD of the first
    gradient of full fine-tuning, which consumes privacy budget under differential privacy. Here they are computed from
    the frozen weight (``weight_svd``) or drawn from the seed (``kaiming``, ``orthonormal``), which consumes none.
    """

    init_a: str = "weight_svd"
    init_b: str = "weight_svd"
    traits: ClassVar[Traits] = Traits(core=True)

    def __post_init__(self) -> None:
        if self.init_b == "zeros":
            raise ConfigError(
                "method.init_b = 'zeros' is invalid with method=fed_sb, which does not train B: choose kaiming, "
                "orthonormal or weight_svd."
            )

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return the core."""
        return frozenset({"core"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average the core."""
        return Step(average(adapter, replies))

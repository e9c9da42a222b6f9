"""FlexLoRA: the mean of the clients' products, truncated to the LoRA rank by SVD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsvd.lora.adapter import Adapter, Factor, Part
from fedsvd.lora.stacked import truncated_svd
from fedsvd.methods.aggregate import Replies, average, stack_products
from fedsvd.methods.method import State, Step, Traits


@dataclass(frozen=True)
class FlexLoRA:
    """FlexLoRA (Bai et al., NeurIPS 2024, arXiv 2402.11505, Section 3).

    ``Σ pₖ BₖAₖ = U Σ Vᵀ``, truncated at rank r: ``B ← U_r Σ_r`` and ``A ← V_rᵀ``. A client of rank rₖ receives the
    first rₖ columns of B and rows of A, the best approximation of that rank. The SVD is computed from the small core of
    the stacked factors, with the same result as the SVD of the dense sum. If the replies' ranks sum to less than r, the
    remaining columns of B are zero and the rows of A orthonormal, so that clients of higher rank can train them.
    """

    init_a: str = "kaiming"
    init_b: str = "zeros"
    traits: ClassVar[Traits] = Traits(linear=False, heterogeneous=True)

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return both factors."""
        return frozenset({"A", "B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Sum the products, and truncate the sum to the adapter's rank."""
        left, right = stack_products(replies)
        pairs = {name: truncated_svd(left[name], right[name], len(A)) for name, A in adapter.A.items()}
        factors: dict[Part, dict[str, Tensor]] = {
            "B": {name: pair[0] for name, pair in pairs.items()},
            "A": {name: pair[1] for name, pair in pairs.items()},
        }
        return Step(average(adapter, replies, only=["head"]).with_parts(factors))

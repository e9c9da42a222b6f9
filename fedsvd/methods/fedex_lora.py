"""FedEx-LoRA: both factors are averaged, and the residual is merged into the frozen weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.lora.stacked import merge, stack
from fedsvd.methods.aggregate import Replies, average, reply_weights, sort_replies
from fedsvd.methods.method import State, Step, Traits


@dataclass(frozen=True)
class FedExLoRA:
    """FedEx-LoRA (Singhal, Ponkshe, Vepakomma, ACL 2025, arXiv 2410.09432, Section 4).

    ``Ā = Σ pₖ Aₖ`` and ``B̄ = Σ pₖ Bₖ`` as in FedAvg, and the residual ``Σ pₖ BₖAₖ − B̄Ā`` is added to the frozen
    weight, so that the global model is the exact mean of the clients' models. The residual is stored and sent as the
    stacked factors ``[p₁B₁ … pₙBₙ] [A₁ − Ā; …; Aₙ − Ā]``, the form with the fewest columns. (In the paper all clients
    have equal weights.)
    """

    init_a: str = "kaiming"
    init_b: str = "zeros"
    traits: ClassVar[Traits] = Traits(linear=False, merges=True)

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return both factors."""
        return frozenset({"A", "B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average A and B, and merge the residual into the frozen weight."""
        mean, clients = average(adapter, replies), sort_replies(replies)
        left, right = stack(
            reply_weights(replies),
            [reply.parts["B"] for reply in clients],
            [{name: A - mean.A[name] for name, A in reply.parts["A"].items()} for reply in clients],
        )
        return Step(merge(mean, left, right))

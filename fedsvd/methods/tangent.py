"""Tangent: both factors are trained by one step in the tangent space at the common product B A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.lora.tangent import step_and_retract
from fedsvd.methods.aggregate import Replies, average
from fedsvd.methods.method import State, Step, Traits


@dataclass(frozen=True)
class Tangent:
    """A federated form of PRISM (Wang and Zhang, ICML 2026, arXiv 2606.00944, Algorithm 1 with plain SGD).

    All clients start from the same B and A. Each takes one step in the coordinates (X, Y) of the tangent space at B A
    (`fedsvd.lora.tangent`), in which each example's gradient is clipped jointly and the noise is isotropic, however
    B A is factorized. The server computes

        ``B A ← retract(B A + X̄ V + U Ȳ)``   with   ``X̄ = Σ pₖ Xₖ``, ``Ȳ = Σ pₖ Yₖ``,

    where U and V are orthonormal frames of B and A, and ``retract`` is the best approximation of rank r, from the SVD
    of factors of rank 2r. A tangent vector is linear in (X, Y) and the frames are common to all clients, so the mean of
    the coordinates is the exact mean of the clients' steps, and noise is never multiplied by noise. With B = 0, the
    first round trains B alone.
    """

    init_a: str = "orthonormal"
    init_b: str = "zeros"
    traits: ClassVar[Traits] = Traits(tangent=True)

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return both factors; clients send the coordinates in them, as ``B + X`` and ``A + Y``."""
        return frozenset({"A", "B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average the coordinates, step along the mean tangent vector, and retract to rank r."""
        return Step(step_and_retract(adapter, average(adapter, replies)))

"""FedSVD: B averaged, then B A refactorized so that A's rows are orthonormal."""

from __future__ import annotations

from dataclasses import dataclass

from fedsvd.adapter import Adapter, Factor
from fedsvd.aggregate import Replies, average, refactorize_sites
from fedsvd.errors import ConfigError
from fedsvd.methods.options import check_initialisation, must_send_a


@dataclass(frozen=True)
class FedSVD:
    """FedSVD (Lee et al., NeurIPS 2025, arXiv 2505.12805).

    ``B̄ = Σ pₖ Bₖ``, then with the SVD ``B̄ A = U Σ Vᵀ``: ``A ← Vᵀ`` and ``B ← U Σ``. The product is unchanged, A's rows
    are orthonormal, and only B is ever trained, so averages stay exact and noise meets no noise.

    Attributes:
        refactorize_every: Refactorize after every so many rounds (1: after each).
        init_a: How A starts.
        init_b: How B starts.
    """

    refactorize_every: int = 1
    init_a: str = "orthonormal"
    init_b: str = "zeros"

    def __post_init__(self) -> None:
        check_initialisation(self.init_a, self.init_b)
        if type(self.refactorize_every) is not int or self.refactorize_every < 1:
            raise ConfigError(
                f"method.refactorize_every = {self.refactorize_every!r} is not allowed; "
                "give a whole number of rounds from 1 (after each round) upwards."
            )

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
        """B, and A once it has been refactorized (or where clients cannot draw the first A themselves)."""
        refactorized = server_round > self.refactorize_every
        return frozenset({"A", "B"}) if refactorized or must_send_a(self.init_a) else frozenset({"B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int) -> Adapter:
        """Average B; every ``refactorize_every`` rounds, refactorize B A."""
        averaged = average(adapter, replies)
        return refactorize_sites(averaged) if server_round % self.refactorize_every == 0 else averaged

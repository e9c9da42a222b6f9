"""What every method answers, and what its server step returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedsvd.lora.adapter import Adapter, Factor, Part
from fedsvd.methods.aggregate import Replies

# What a method itself remembers from round to round, as named tensors; checkpoints keep it.
State = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Traits:
    """What a method needs and allows; the same for all of its options.

    Attributes:
        linear: The server step needs no more than the weighted mean of what clients send.
        heterogeneous: Clients may have lower ranks than the server (``federation.client_ranks``).
        core: There is an r × r matrix between B and A.
        personal: Factors that stay with each client, so that there is no one global model.
    """

    linear: bool = True
    heterogeneous: bool = False
    core: bool = False
    personal: frozenset[Factor] = frozenset()


@dataclass(frozen=True)
class Step:
    """The outcome of a server step.

    Attributes:
        adapter: The next global adapter.
        rotations: Of a factor that moved within its own span, each site's R of shape (r, r), float64: the new A is
            ``Rᵀ A``, the new B is ``B R``. The other factor then changed so that the product did not.
        state: What the method wants back in the next round.
    """

    adapter: Adapter
    rotations: Mapping[Part, Mapping[str, Tensor]] = field(default_factory=dict)
    state: State = field(default_factory=dict)


class Method(Protocol):
    """One strategy and one client serve every method that answers these."""

    @property
    def init_a(self) -> str:
        """How A starts: one of `fedsvd.lora.initialization.A_INITIALIZATIONS`."""

    @property
    def init_b(self) -> str:
        """How B starts: one of `fedsvd.lora.initialization.B_INITIALIZATIONS`."""

    @property
    def traits(self) -> Traits:
        """What the method needs and allows."""

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return the factors that a client's optimiser moves in this round (1-based)."""

    def uplink(self, server_round: int) -> frozenset[Factor]:
        """Return the factors that a client sends back: some or all of those it trains."""

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Return the next global adapter from the current one and at least one reply."""

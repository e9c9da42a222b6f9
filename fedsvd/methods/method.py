"""The interface of a federated LoRA method, and the result of its server step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedsvd.lora.adapter import Adapter, Factor, Part
from fedsvd.methods.aggregate import Replies

# A method's state between rounds, as named tensors; stored in checkpoints.
State = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Traits:
    """The requirements and capabilities of a method.

    Attributes:
        linear: Whether the server step needs only the weighted mean of the client replies.
        heterogeneous: Whether clients may have lower ranks than the server (``federation.client_ranks``).
        core: Whether there is an r × r matrix between B and A.
        tangent: Whether clients send the coordinates of a tangent vector at the factors that they received, from a
            single step (see `fedsvd.lora.tangent`).
        per_site: Whether clients train one factor at each site, the one that is not orthonormal (see
            `fedsvd.lora.trained_factor`).
        merges: Whether the server step moves updates into the frozen weights, which can then not be quantized.
        personal: Factors that stay with each client. If there are any, there is no single global model.
    """

    linear: bool = True
    heterogeneous: bool = False
    core: bool = False
    tangent: bool = False
    per_site: bool = False
    merges: bool = False
    personal: frozenset[Factor] = frozenset()


@dataclass(frozen=True)
class Step:
    """The result of a server step.

    Attributes:
        adapter: The next global adapter.
        rotations: For a factor that was rotated within its span, R of shape (r, r), float64, for each site: the new A
            is ``Rᵀ A``, or the new B is ``B R``. The other factor changed such that the product is the same.
        state: The state to pass to the next server step.
    """

    adapter: Adapter
    rotations: Mapping[Part, Mapping[str, Tensor]] = field(default_factory=dict)
    state: State = field(default_factory=dict)


class Method(Protocol):
    """The interface of a method. The strategy and the client app work with every method that implements it."""

    @property
    def init_a(self) -> str:
        """Initialization of A: one of `fedsvd.lora.initialization.A_INITIALIZATIONS`."""

    @property
    def init_b(self) -> str:
        """Initialization of B: one of `fedsvd.lora.initialization.B_INITIALIZATIONS`."""

    @property
    def traits(self) -> Traits:
        """Requirements and capabilities of the method."""

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return the factors that clients train in this round (1-based)."""

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Compute the next global adapter from the current one and at least one reply."""


def sent_factors(method: Method, server_round: int) -> frozenset[Factor]:
    """Return the factors that clients send to the server in this round: the trained ones that do not stay with them."""
    return method.trains(server_round) - method.traits.personal

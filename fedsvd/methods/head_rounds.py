"""Rounds that train the classification head and no factor: all rounds of a run, or those before a method's own."""

from __future__ import annotations

from dataclasses import dataclass

from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.methods.aggregate import Replies, average
from fedsvd.methods.method import Method, State, Step, Traits


@dataclass(frozen=True)
class HeadOnly:
    """A linear model on frozen features: the head is averaged (FedAvg), and no factor is trained, sent or changed.

    By default, B is zero, so the adapted model is the frozen one, whatever the configured method.

    Attributes:
        init_a: Initialization of A.
        init_b: Initialization of B.
        core: Whether there is an r × r matrix between B and A.
    """

    init_a: str = "kaiming"
    init_b: str = "zeros"
    core: bool = False

    @classmethod
    def before(cls, method: Method) -> HeadOnly:
        """Return the rounds of the head alone before a method's own, for a run that ends before these.

        It is initialized like the method, with which the run continues if it is resumed with more rounds.
        """
        return cls(method.init_a, method.init_b, method.traits.core)

    @property
    def traits(self) -> Traits:
        """Those of a mean of heads; a core has one size at all clients."""
        return Traits(heterogeneous=not self.core, core=self.core)

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return no factor."""
        return frozenset()

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Average the head."""
        return Step(average(adapter, replies))


@dataclass(frozen=True)
class HeadFirst:
    """A method that starts after rounds in which only the head is trained.

    Attributes:
        method: The method; its round 1 is the round after ``head_rounds``.
        head_rounds: Number of rounds before it.
    """

    method: Method
    head_rounds: int

    @property
    def init_a(self) -> str:
        """The method's initialization of A."""
        return self.method.init_a

    @property
    def init_b(self) -> str:
        """The method's initialization of B."""
        return self.method.init_b

    @property
    def traits(self) -> Traits:
        """The method's traits."""
        return self.method.traits

    def trains(self, server_round: int) -> frozenset[Factor]:
        """Return the factors that the method trains; none in the first rounds."""
        return self.method.trains(server_round - self.head_rounds) if self._has_started(server_round) else frozenset()

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        """Apply the method's server step; average the head in the first rounds."""
        if not self._has_started(server_round):
            return Step(average(adapter, replies), state=state)
        return self.method.server_step(adapter, replies, server_round - self.head_rounds, state)

    def _has_started(self, server_round: int) -> bool:
        return server_round > self.head_rounds

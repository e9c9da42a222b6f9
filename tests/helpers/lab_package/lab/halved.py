"""FedAvg of B with the mean halved."""

from dataclasses import dataclass
from typing import ClassVar

from fedsvd.lora.adapter import Adapter, Factor
from fedsvd.methods import State, Step, Traits
from fedsvd.methods.aggregate import Replies, average


@dataclass(frozen=True)
class Halved:
    factor: float = 0.5
    init_a: str = "kaiming"
    init_b: str = "zeros"
    traits: ClassVar[Traits] = Traits()

    def trains(self, server_round: int) -> frozenset[Factor]:
        return frozenset({"B"})

    def server_step(self, adapter: Adapter, replies: Replies, server_round: int, state: State) -> Step:
        mean = average(adapter, replies)
        return Step(mean.with_parts({"B": {name: self.factor * B for name, B in mean.B.items()}}))

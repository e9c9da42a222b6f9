"""The weighted mean of replies that are let go as soon as they are added: memory does not grow with the clients."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fedsvd.errors import RunError
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods.aggregate import Reply, pad_to_rank


class RunningMean:
    """Sums up ``Σ nₖ Xₖ / Σ nₖ`` reply by reply, in whatever order they come.

    Each product nₖ Xₖ of a whole number and a float32 is exact in float64, and each sum carries its rounding error
    along (Knuth's TwoSum; The Art of Computer Programming 4.2.2, Theorem B): what the order of the replies can change
    lies far below what the result's float32 keeps.

    Args:
        adapter: What the clients started from; it stands where a client of a lower rank holds nothing.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._sums: dict[Part, dict[str, Tensor]] = {}
        self._errors: dict[Part, dict[str, Tensor]] = {}
        self._noise = 0.0
        self.count = 0
        self.num_examples = 0

    def add(self, reply: Reply) -> None:
        """Add one client's reply.

        Raises:
            RunError: It carries other parts than those before it.
        """
        if self.count and reply.parts.keys() != self._sums.keys():
            raise RunError("the replies of one round carry different parts and cannot be averaged.")
        for part, named in reply.parts.items():
            sums, errors = self._sums.setdefault(part, {}), self._errors.setdefault(part, {})
            for name, before in self._adapter.part(part).items():
                term = pad_to_rank(named[name], before) * reply.num_examples
                old = sums.get(name)
                if old is None:
                    sums[name], errors[name] = term, torch.zeros_like(term)
                    continue
                total = old + term
                shadow = total - old
                errors[name] += (old - (total - shadow)) + (term - shadow)
                sums[name] = total
        self._noise += (reply.num_examples * reply.noise_std) ** 2
        self.num_examples += reply.num_examples
        self.count += 1

    @property
    def reply(self) -> Reply:
        """The one reply that stands for all: the mean in float64, and the noise that is left in it.

        Raises:
            RunError: Nothing was added, or no examples.
        """
        if self.num_examples <= 0:
            raise RunError(
                f"{self.count} replies with {self.num_examples} examples in all cannot be averaged; at least 1 is "
                "needed."
            )
        parts = {
            part: {name: (total + self._errors[part][name]) / self.num_examples for name, total in named.items()}
            for part, named in self._sums.items()
        }
        return Reply(0, self.num_examples, parts, math.sqrt(self._noise) / self.num_examples)


def running_mean(adapter: Adapter, replies: Iterable[Reply]) -> RunningMean:
    """Add replies as they come, and keep none of them."""
    mean = RunningMean(adapter)
    for reply in replies:
        mean.add(reply)
    return mean

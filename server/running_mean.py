"""A weighted mean that stores no replies, so that memory does not grow with the number of clients."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fedsvd.errors import RunError
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.methods.aggregate import Reply, pad_to_rank


class RunningMean:
    """Accumulates ``Σ nₖ Xₖ / Σ nₖ`` reply by reply, in any order.

    Each product nₖ Xₖ of an integer and a float32 is exact in float64, and the rounding error of each sum is
    accumulated separately (Knuth's TwoSum; The Art of Computer Programming 4.2.2, Theorem B). The influence of the
    order of replies is far below the precision of the float32 result.

    Args:
        adapter: The adapter that the clients started from; it fills the entries that a client of lower rank lacks.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._sums: dict[Part, dict[str, Tensor]] = {}
        self._errors: dict[Part, dict[str, Tensor]] = {}
        self._noise = 0.0
        self.count = 0
        self.num_examples: float = 0

    def add(self, reply: Reply) -> None:
        """Add one client's reply.

        Raises:
            RunError: If its parts differ from those of earlier replies.
        """
        if self.count and reply.parts.keys() != self._sums.keys():
            raise RunError("the replies of one round have different parts: expected the same parts in all of them.")
        for part, tensors in reply.parts.items():
            sums, errors = self._sums.setdefault(part, {}), self._errors.setdefault(part, {})
            for name, before in self._adapter.part(part).items():
                term = pad_to_rank(tensors[name], before) * reply.num_examples
                old = sums.get(name)
                if old is None:
                    sums[name], errors[name] = term, torch.zeros_like(term)
                    continue
                total = old + term
                added = total - old
                errors[name] += (old - (total - added)) + (term - added)
                sums[name] = total
        self._noise += (reply.num_examples * reply.noise_std) ** 2
        self.num_examples += reply.num_examples
        self.count += 1

    @property
    def reply(self) -> Reply:
        """One reply with the mean in float64, and the standard deviation of its noise.

        Raises:
            RunError: If no replies or no examples were added.
        """
        if self.num_examples <= 0:
            raise RunError(
                f"cannot average {self.count} replies with {self.num_examples} examples in total: expected at least 1 "
                "example."
            )
        parts = {
            part: {name: (total + self._errors[part][name]) / self.num_examples for name, total in sums.items()}
            for part, sums in self._sums.items()
        }
        return Reply(0, self.num_examples, parts, math.sqrt(self._noise) / self.num_examples)


def running_mean(adapter: Adapter, replies: Iterable[Reply]) -> RunningMean:
    """Return the running mean of replies, each of which is discarded after it is added."""
    mean = RunningMean(adapter)
    for reply in replies:
        mean.add(reply)
    return mean

"""Noise that is drawn on a thread of its own while a step's gradients are computed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from fedsvd.privacy.randomness import Randomness


class NoiseAhead:
    """Draws the noise of one step at a time; use it as a context manager.

    The noise of a step is requested when its batch is known, and taken when its gradients are summed. A GPU computes
    meanwhile. Noise that was requested and never taken, because the step failed, is discarded and never used again.

    Args:
        randomness: Source of the noise. Between `request` and `take`, nothing else may draw from it: its stream would
            be read by two threads at once.
    """

    def __init__(self, randomness: Randomness) -> None:
        self._randomness = randomness
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fedsvd-noise")
        self._drawn: Future[list[Tensor]] | None = None

    def __enter__(self) -> NoiseAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def request(self, parameters: Sequence[Tensor], std: float) -> None:
        """Start to draw noise of standard deviation ``std`` for each parameter, in their order."""
        likes = [parameter.detach() for parameter in parameters]
        self._drawn = self._thread.submit(lambda: [self._randomness.normal(like, std) for like in likes])

    def take(self) -> list[Tensor]:
        """Return the requested noise, once, with the shape, device and dtype of each parameter.

        Raises:
            RuntimeError: No noise was requested since the last call.
        """
        if self._drawn is None:
            raise RuntimeError("the noise of a step must be requested before it is taken, and is taken once")
        drawn, self._drawn = self._drawn, None
        return drawn.result()

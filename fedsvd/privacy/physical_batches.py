"""Physical batches: the parts of a batch that are in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch


def split_batch(
    batch: Sequence[int], physical_batch_size: int, lengths: Sequence[int] = (), *, separate: bool = False
) -> list[list[int]]:
    """Split a batch into physical batches.

    A batch that needs several is split in order of the examples' lengths, which minimizes padding. The sum over the
    batch does not depend on the order, so neither does the privacy analysis.

    Args:
        batch: Positions of examples.
        physical_batch_size: Largest number of examples in memory at once.
        lengths: Number of tokens by position, with padding if ``separate``. Positions beyond the last one, such as
            canaries, come first.
        separate: Put examples of different lengths into different physical batches.

    Returns:
        The physical batches; none for an empty batch.
    """
    ordered = list(batch)
    if not lengths or not (separate or len(ordered) > physical_batch_size):
        return _chunks(ordered, physical_batch_size)
    shortest = min((lengths[position] for position in ordered if position < len(lengths)), default=0)

    def length(position: int) -> int:
        return lengths[position] if position < len(lengths) else shortest

    # Canaries, whose positions are the largest, come first among the shortest.
    ordered.sort(key=lambda position: (length(position), position < len(lengths)))
    groups = [list(group) for _, group in groupby(ordered, length)] if separate else [ordered]
    return [chunk for group in groups for chunk in _chunks(group, physical_batch_size)]


def _chunks(positions: list[int], size: int) -> list[list[int]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def with_following(batches: Iterable[list[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield each batch with the one after it, which is empty after the last one; one batch is read ahead."""
    current: list[int] | None = None
    for following in batches:
        if current is not None:
            yield current, following
        current = following
    if current is not None:
        yield current, []


def preparation(losses: object) -> Callable[[list[int]], None] | None:
    """Return the method with which a loss function collates a physical batch ahead; None if it has none."""
    return getattr(losses, "prepare", None)


@dataclass
class BatchLimit:
    """The largest number of examples in memory at once; found by trying where it is not given.

    The sum over a batch does not depend on how it is split, so neither do the model and the guarantee.

    Attributes:
        size: The limit; None: the largest that fits, within an eighth.
        fits: The largest number that has fit since the last failure.
        fails: The smallest number that did not fit.
    """

    size: int | None = None
    fits: int = 0
    fails: int | None = None

    def next_size(self, count: int) -> int:
        """Return how many of ``count`` examples to try at once."""
        if self.size is not None or self.fails is None:
            return min(count, self.size or count)
        is_close = self.fits > 0 and self.fails - self.fits <= max(1, self.fails // 8)
        return min(count, self.fits if is_close else max(1, (self.fits + self.fails) // 2))

    def record_fit(self, count: int) -> None:
        """Record that ``count`` examples fit."""
        self.fits = max(self.fits, count)

    def record_failure(self, count: int) -> None:
        """Record that ``count`` examples did not fit: longer texts than those that fit before need more memory."""
        self.fails = count
        self.fits = self.fits if self.fits < count else 0


def run_physical_batches(
    batch: Sequence[int],
    limit: BatchLimit,
    lengths: Sequence[int],
    compute: Callable[[list[int]], None],
    release: Callable[[], None],
    accumulate: Callable[[list[int], bool], None],
    prepare: Callable[[list[int]], None] | None = None,
    following: Sequence[int] = (),
    *,
    separate: bool = False,
) -> None:
    """Process a batch in physical batches; one that does not fit is tried again in smaller ones.

    Nothing of a failed try remains, and nothing is released: a step adds its noise once, after the last physical batch.

    Args:
        batch: Positions of examples.
        limit: The limit.
        lengths: See `split_batch`.
        compute: Compute the gradients of a physical batch. May raise `torch.OutOfMemoryError`.
        release: Remove what a failed ``compute`` left.
        accumulate: Add the computed gradients of a physical batch, and whether it is the batch's last.
        prepare: Called with the physical batch that probably comes next, before the current one is computed.
        following: The next batch, for ``prepare``; empty after the last one.
        separate: See `split_batch`.
    """

    def split(positions: Sequence[int]) -> list[list[int]]:
        return split_batch(positions, max(1, limit.next_size(len(positions))), lengths, separate=separate)

    # An empty batch has one empty part.
    pending = split(batch) or [[]]
    while pending:
        part = pending.pop(0)
        if prepare:
            upcoming = pending or split(following)
            if upcoming:
                prepare(upcoming[0])
        failed = False
        try:
            compute(part)
        except torch.OutOfMemoryError:
            if limit.size is not None or len(part) == 1:
                raise
            failed = True
        # Outside of the handler, whose exception refers to the tensors of the failed try.
        if failed:
            limit.record_failure(len(part))
            release()
            torch.cuda.empty_cache()
            pending = [*split(part), *pending]
        else:
            limit.record_fit(len(part))
            accumulate(part, not pending)

"""Physical batches: the parts of a batch that are in memory at once."""

from __future__ import annotations

from collections.abc import Sequence


def split_batch(batch: Sequence[int], physical_batch_size: int, lengths: Sequence[int] = ()) -> list[list[int]]:
    """Split a batch into physical batches.

    A batch that needs several is split in order of the examples' lengths, which minimizes padding. The sum over the
    batch does not depend on the order, so neither does the privacy analysis.

    Args:
        batch: Positions of examples.
        physical_batch_size: Largest number of examples in memory at once.
        lengths: Number of tokens by position. Positions beyond the last one, such as canaries, come first.

    Returns:
        The physical batches; none for an empty batch.
    """
    ordered = list(batch)
    if len(ordered) > physical_batch_size and lengths:
        ordered.sort(key=lambda position: lengths[position] if position < len(lengths) else 0)
    return [ordered[start : start + physical_batch_size] for start in range(0, len(ordered), physical_batch_size)]

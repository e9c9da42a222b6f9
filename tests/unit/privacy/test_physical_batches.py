"""Splitting a batch into physical batches."""

from hypothesis import given
from hypothesis import strategies as st

from fedsvd.privacy.physical_batches import split_batch


@given(st.lists(st.integers(0, 30), unique=True), st.integers(1, 8), st.lists(st.integers(1, 9), max_size=25))
def test_every_example_is_in_one_physical_batch(batch: list[int], size: int, lengths: list[int]) -> None:
    parts = split_batch(batch, size, lengths)

    assert sorted(position for part in parts for position in part) == sorted(batch)
    assert all(0 < len(part) <= size for part in parts)
    assert len(parts) == -(-len(batch) // size)


@given(st.lists(st.integers(0, 30), unique=True), st.integers(1, 8), st.lists(st.integers(1, 9), max_size=25))
def test_examples_of_different_widths_are_separate(batch: list[int], size: int, widths: list[int]) -> None:
    parts = split_batch(batch, size, widths, separate=True)

    assert sorted(position for part in parts for position in part) == sorted(batch)
    assert all(0 < len(part) <= size for part in parts)
    if widths:
        assert all(len({widths[i] for i in part if i < len(widths)}) <= 1 for part in parts)
        # Canaries join the shortest examples, in the first physical batches.
        is_canary = [position >= len(widths) for part in parts for position in part]
        assert is_canary == sorted(is_canary, reverse=True)


def test_large_batches_are_split_by_length() -> None:
    assert split_batch([0, 1, 2, 3], 2, [9, 1, 5, 2]) == [[1, 3], [2, 0]]
    # Canaries have no length; a batch that fits keeps its order.
    assert split_batch([0, 1, 2, 4], 2, [9, 1, 5, 2]) == [[4, 1], [2, 0]]
    assert split_batch([3, 0], 2, [9, 1, 5, 2]) == [[3, 0]]
    assert split_batch([], 2, [1]) == []

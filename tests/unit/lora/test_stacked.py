"""Tests of stacked factors against dense sums."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.lora.adapter import Adapter
from fedsvd.lora.stacked import merge, stack, truncated_svd


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_truncated_svd_is_the_best_approximation(seed: int, d_out: int, d_in: int, inner: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(d_out, inner, generator=generator, dtype=torch.float64)
    right = torch.randn(inner, d_in, generator=generator, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(left @ right, full_matrices=False)

    new_left, new_right = truncated_svd(left, right, rank)

    assert (new_left.shape, new_right.shape) == ((d_out, rank), (rank, d_in))
    expected = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    torch.testing.assert_close(new_left @ new_right, expected, atol=1e-9, rtol=1e-9)
    orthonormal = new_right[: min(rank, d_in)]
    identity = torch.eye(len(orthonormal), dtype=torch.float64)
    torch.testing.assert_close(orthonormal @ orthonormal.mT, identity, atol=1e-9, rtol=0)


def test_directions_beyond_the_rank_of_the_sum_can_be_trained() -> None:
    left, right = torch.tensor([[3.0], [0.0], [4.0]]), torch.tensor([[0.0, 0.0, 2.0, 0.0]])

    new_left, new_right = truncated_svd(left, right, 3)

    torch.testing.assert_close(new_left @ new_right, left @ right)
    assert not new_left[:, 1:].any()
    # With B's columns at zero, the gradient of B is G Aᵀ: it is zero where A's rows are.
    torch.testing.assert_close(new_right @ new_right.mT, torch.eye(3))
    assert all(torch.equal(*pair) for pair in zip(truncated_svd(left, right, 3), (new_left, new_right), strict=True))


def test_stack_equals_the_weighted_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    Bs = [{"s": torch.randn(5, r, generator=generator)} for r in (2, 3)]
    As = [{"s": torch.randn(r, 4, generator=generator)} for r in (2, 3)]
    left, right = stack([0.25, 0.75], Bs, As)
    expected = 0.25 * Bs[0]["s"] @ As[0]["s"] + 0.75 * Bs[1]["s"] @ As[1]["s"]
    torch.testing.assert_close(left["s"] @ right["s"], expected)


@pytest.mark.parametrize("rounds", [1, 3, 40])
def test_merged_base_equals_the_sum_and_has_bounded_rank(rounds: int) -> None:
    adapter = Adapter(
        A={"one": torch.zeros(2, 6), "two": torch.zeros(2, 3)},
        B={"one": torch.zeros(5, 2), "two": torch.zeros(4, 2)},
        head={},
        scale={"one": 1.0, "two": 1.0},
    )
    generator = torch.Generator().manual_seed(0)
    total = {"one": torch.zeros(5, 6), "two": torch.zeros(4, 3)}
    for _ in range(rounds):
        left = {name: torch.randn(len(B), 2, generator=generator) for name, B in adapter.B.items()}
        right = {name: torch.randn(2, A.shape[1], generator=generator) for name, A in adapter.A.items()}
        adapter = merge(adapter, left, right)
        total = {name: total[name] + left[name] @ right[name] for name in total}
        assert adapter.base_rank <= 10
    for name, expected in total.items():
        torch.testing.assert_close(adapter.base_left[name] @ adapter.base_right[name], expected, atol=1e-4, rtol=1e-4)


def test_a_single_product_is_weighted() -> None:
    left, right = stack([0.5], [{"s": torch.ones(2, 1)}], [{"s": torch.ones(1, 3)}])
    assert torch.equal(left["s"] @ right["s"], torch.full((2, 3), 0.5))

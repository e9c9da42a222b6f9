"""Tests of optimal singular value shrinkage: its formula, its effect on the error, and its use in FedSVD."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.lora.adapter import Adapter
from fedsvd.lora.shrinkage import shrink, shrink_columns
from fedsvd.methods import State, build_method
from fedsvd.methods.aggregate import Reply


def test_square_matrix_matches_the_closed_form() -> None:
    # β = 1: η(y) = √(y² − 4) above 2, in units of σ√n = 2·√4 = 4.
    shrunk = shrink(torch.tensor([20.0, 10.0, 7.9, 0.0]), 2.0, (4, 4))
    torch.testing.assert_close(shrunk, torch.tensor([4 * math.sqrt(21), 4 * math.sqrt(2.25), 0.0, 0.0]))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 10), st.floats(0.0, 1000.0))
def test_shrink_reduces_values_and_preserves_their_order(
    rows: int, columns: int, noise_std: float, value: float
) -> None:
    values = torch.tensor([value * 1.5, value], dtype=torch.float64)
    shrunk = shrink(values, noise_std, (rows, columns))
    assert (shrunk <= values + 1e-9).all()
    assert (shrunk >= 0).all()
    assert shrunk[0] >= shrunk[1]


def test_zero_noise_leaves_values_unchanged() -> None:
    values = torch.tensor([3.0, 1.0])
    assert torch.equal(shrink(values, 0.0, (5, 2)), values)


@pytest.mark.parametrize("strength", [2.0, 4.0])
def test_shrinkage_reduces_the_error_of_a_noisy_low_rank_matrix(strength: float) -> None:
    generator = torch.Generator().manual_seed(3)
    d_out, rank, std = 384, 8, 0.5
    noisy_error, shrunk_error = 0.0, 0.0
    for _ in range(20):
        u, v = torch.randn(d_out, 1, generator=generator), torch.randn(1, rank, generator=generator)
        signal = strength * std * math.sqrt(d_out) * (u / u.norm()) @ (v / v.norm())
        noisy = signal + std * torch.randn(d_out, rank, generator=generator)
        U, S, Vh = torch.linalg.svd(noisy, full_matrices=False)
        denoised = U * shrink(S, std, (d_out, rank)) @ Vh
        noisy_error += float((noisy - signal).square().sum())
        shrunk_error += float((denoised - signal).square().sum())
    assert shrunk_error < 0.4 * noisy_error


def test_pure_noise_is_mostly_removed() -> None:
    noise = torch.randn(384, 8, generator=torch.Generator().manual_seed(0))
    S = torch.linalg.svdvals(noise)
    assert float(shrink(S, 1.05, (384, 8)).max()) < 0.35 * float(S.max())


def make_adapter() -> Adapter:
    A = torch.linalg.qr(torch.randn(20, 3, generator=torch.Generator().manual_seed(1))).Q.mT.contiguous()
    return Adapter(A={"s": A}, B={"s": torch.zeros(30, 3)}, head={}, scale={"s": 1.0})


def test_shrinkage_does_not_accumulate_over_rounds() -> None:
    method, adapter = build_method({"name": "fedsvd", "shrinkage": "optimal"}), make_adapter()
    state: State = {}
    total = torch.zeros(30, 20)
    generator = torch.Generator().manual_seed(2)
    for server_round in range(1, 6):
        update = torch.randn(30, 3, generator=generator)
        total += update @ adapter.A["s"]
        reply = Reply(0, 1, {"B": {"s": adapter.B["s"] + update}}, noise_std=0.1)
        step = method.server_step(adapter, [reply], server_round, state)
        adapter, state = step.adapter, step.state
    # The state holds the unshrunk sum of all updates and the noise variance of all rounds.
    torch.testing.assert_close(state["unshrunk"]["s"] @ adapter.A["s"], total, atol=1e-4, rtol=1e-4)
    assert float(state["noise"]["variance"]) == pytest.approx(5 * 0.1**2)
    torch.testing.assert_close(adapter.B["s"], shrink_columns(state["unshrunk"]["s"], math.sqrt(0.05)))


def test_shrinkage_without_noise_equals_plain_fedsvd() -> None:
    methods = build_method({"name": "fedsvd"}), build_method({"name": "fedsvd", "shrinkage": "optimal"})
    replies = [Reply(0, 1, {"B": {"s": torch.randn(30, 3)}})]
    plain, shrunk = (method.server_step(make_adapter(), replies, 1, {}).adapter for method in methods)
    torch.testing.assert_close(plain.B["s"] @ plain.A["s"], shrunk.B["s"] @ shrunk.A["s"])


def test_values_near_the_edge_of_the_noise_match_the_closed_form() -> None:
    # β = 1/4, so the edge is at y = 1.5, in units of σ√16.
    y = 1.52
    root = math.sqrt((y**2 - 1.25) ** 2 - 1)
    shrunk = shrink(torch.tensor([4 * 0.5 * y, 4 * 0.5 * 1.49]), 0.5, (16, 4))
    torch.testing.assert_close(shrunk, torch.tensor([4 * 0.5 * root / y, 0.0]))
    assert root < 1


def test_columns_are_shrunk_by_the_shape_of_the_matrix() -> None:
    B = torch.zeros(16, 4)
    B[:4] = torch.diag(torch.tensor([9.0, 6.0, 3.04, 2.98]))
    shrunk = shrink_columns(B, 0.5)
    torch.testing.assert_close(shrunk[:4].diagonal(), shrink(B[:4].diagonal(), 0.5, (16, 4)))
    assert not shrunk[4:].any()

"""Optimal shrinkage: its formula, what it promises, and what FedSVD makes of it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.lora.adapter import Adapter
from fedsvd.lora.shrinkage import shrink, shrink_columns
from fedsvd.methods import State, build_method
from fedsvd.methods.aggregate import Reply


def test_a_square_matrix_follows_the_closed_form() -> None:
    # β = 1: η(y) = √(y² − 4) above 2, in units of σ√n = 2·√4 = 4.
    found = shrink(torch.tensor([20.0, 10.0, 7.9, 0.0]), 2.0, (4, 4))
    torch.testing.assert_close(found, torch.tensor([4 * math.sqrt(21), 4 * math.sqrt(2.25), 0.0, 0.0]))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 10), st.floats(0.0, 1000.0))
def test_it_shrinks_and_keeps_the_order(rows: int, columns: int, noise_std: float, value: float) -> None:
    values = torch.tensor([value * 1.5, value], dtype=torch.float64)
    found = shrink(values, noise_std, (rows, columns))
    assert (found <= values + 1e-9).all()
    assert (found >= 0).all()
    assert found[0] >= found[1]


def test_no_noise_changes_nothing() -> None:
    values = torch.tensor([3.0, 1.0])
    assert torch.equal(shrink(values, 0.0, (5, 2)), values)


@pytest.mark.parametrize("strength", [2.0, 4.0])
def test_it_lowers_the_error_of_low_rank_plus_noise(strength: float) -> None:
    generator = torch.Generator().manual_seed(3)
    d_out, rank, std = 384, 8, 0.5
    plain, shrunk = 0.0, 0.0
    for _ in range(20):
        u, v = torch.randn(d_out, 1, generator=generator), torch.randn(1, rank, generator=generator)
        signal = strength * std * math.sqrt(d_out) * (u / u.norm()) @ (v / v.norm())
        noisy = signal + std * torch.randn(d_out, rank, generator=generator)
        U, S, Vh = torch.linalg.svd(noisy, full_matrices=False)
        denoised = U * shrink(S, std, (d_out, rank)) @ Vh
        plain += float((noisy - signal).square().sum())
        shrunk += float((denoised - signal).square().sum())
    assert shrunk < 0.4 * plain


def test_noise_alone_is_taken_for_nothing() -> None:
    noise = torch.randn(384, 8, generator=torch.Generator().manual_seed(0))
    S = torch.linalg.svdvals(noise)
    assert float(shrink(S, 1.05, (384, 8)).max()) < 0.35 * float(S.max())


def make_adapter() -> Adapter:
    A = torch.linalg.qr(torch.randn(20, 3, generator=torch.Generator().manual_seed(1))).Q.mT.contiguous()
    return Adapter(A={"s": A}, B={"s": torch.zeros(30, 3)}, head={}, scale={"s": 1.0})


def test_what_is_shrunk_once_is_not_shrunk_again() -> None:
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
    # The sum of all updates is there unshrunk, with the noise of all rounds.
    torch.testing.assert_close(state["unshrunk"]["s"] @ adapter.A["s"], total, atol=1e-4, rtol=1e-4)
    assert float(state["noise"]["variance"]) == pytest.approx(5 * 0.1**2)
    torch.testing.assert_close(adapter.B["s"], shrink_columns(state["unshrunk"]["s"], math.sqrt(0.05)))


def test_without_noise_shrinkage_is_plain_fedsvd() -> None:
    plain, shrinking = build_method({"name": "fedsvd"}), build_method({"name": "fedsvd", "shrinkage": "optimal"})
    replies = [Reply(0, 1, {"B": {"s": torch.randn(30, 3)}})]
    one, other = (method.server_step(make_adapter(), replies, 1, {}).adapter for method in (plain, shrinking))
    torch.testing.assert_close(one.B["s"] @ one.A["s"], other.B["s"] @ other.A["s"])

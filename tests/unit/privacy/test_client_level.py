"""Clipped updates and their noised sum, compared with hand-computed values and the theory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_factors import random_factors
from torch import Tensor

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.privacy.accounting import epsilon
from fedsvd.privacy.client_level import add_noise, clip_update, clipped_sum, run_spend
from fedsvd.privacy.randomness import TorchRandomness


def make_config(*overrides: str) -> Config:
    return compose(["experiment=smoke", "privacy=client_level", *overrides])


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))


@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_update_is_clipped_to_a_joint_norm(length: float, bound: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    update = [torch.randn(shape, generator=generator) for shape in [(3, 2), (5,), ()]]
    update = [tensor * (length / norm(update)) for tensor in update]

    clipped = clip_update(update, bound)

    assert norm(clipped) <= bound * (1 + 1e-12)
    factor = min(1.0, bound / norm(update))
    for tensor, expected in zip(clipped, update, strict=True):
        torch.testing.assert_close(tensor, expected.double() * factor, rtol=1e-9, atol=0)


def test_zero_update_is_unchanged() -> None:
    assert norm(clip_update([torch.zeros(3), torch.zeros(2, 2)], 0.1)) == 0


def test_clipping_b_also_clips_the_product_with_an_orthonormal_a() -> None:
    B, A = random_factors(seed=1, condition=30.0)
    assert norm(clip_update([B], 0.3)) == pytest.approx(0.3)
    assert norm([clip_update([B], 0.3)[0] @ A]) == pytest.approx(0.3)


def test_each_update_is_clipped_separately_before_summing() -> None:
    updates = [[torch.tensor([3.0, 4.0])], [torch.tensor([0.6, 0.0])]]

    [total] = clipped_sum(updates, updates[0], 1.0)

    torch.testing.assert_close(total, torch.tensor([1.2, 0.8], dtype=torch.float64))
    [empty_sum] = clipped_sum([], updates[0], 1.0)
    assert empty_sum.tolist() == [0, 0]


def test_noise_has_the_requested_std_in_every_tensor() -> None:
    zeros = [torch.zeros(100, 100), torch.zeros(5000)]
    for tensor in add_noise(zeros, 0.5, TorchRandomness(1)):
        assert tensor.std().item() == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("clients_per_round", [1, 3, 6])
def test_run_is_within_the_budget(clients_per_round: int) -> None:
    config = make_config(
        "federation.num_clients=6", f"federation.clients_per_round={clients_per_round}", "train.num_rounds=7"
    )
    spend = run_spend(config.privacy, config.train, config.federation)

    assert (spend.sample_rate, spend.steps) == (clients_per_round / 6, 7)
    assert 0.9 * 6 < epsilon([spend], 1e-5) <= 6

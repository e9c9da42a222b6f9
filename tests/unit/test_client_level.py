"""Clipped updates and their noised mean, against hand-computed values and the theory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_factors import random_factors
from torch import Tensor

from fedsvd.compose import compose
from fedsvd.config import Config
from fedsvd.privacy.accounting import Spend, epsilon
from fedsvd.privacy.client_level import clipped, noisy_mean, whole_run
from fedsvd.privacy.randomness import TorchRandomness


def make_config(*overrides: str) -> Config:
    return compose(["experiment=smoke", "privacy=client_level", *overrides])


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))


@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_an_update_is_clipped_as_a_whole(length: float, bound: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    update = [torch.randn(shape, generator=generator) for shape in [(3, 2), (5,), ()]]
    update = [tensor * (length / norm(update)) for tensor in update]

    found = clipped(update, bound)

    assert norm(found) <= bound * (1 + 1e-12)
    factor = min(1.0, bound / norm(update))
    for tensor, expected in zip(found, update, strict=True):
        torch.testing.assert_close(tensor, expected.double() * factor, rtol=1e-9, atol=0)


def test_an_update_of_zeros_stays_one() -> None:
    assert norm(clipped([torch.zeros(3), torch.zeros(2, 2)], 0.1)) == 0


def test_clipping_b_is_clipping_the_product_where_a_is_orthonormal() -> None:
    B, A = random_factors(seed=1, condition=30.0)
    assert norm(clipped([B], 0.3)) == pytest.approx(0.3)
    assert norm([clipped([B], 0.3)[0] @ A]) == pytest.approx(0.3)


def test_the_mean_is_over_expected_clients_and_each_update_counts_alike() -> None:
    privacy = make_config("privacy.max_update_norm=1").privacy
    updates = [[torch.tensor([3.0, 4.0])], [torch.tensor([0.6, 0.0])]]

    [mean] = noisy_mean(updates, updates[0], privacy, Spend(1e-9, 0.5, 1), 8, TorchRandomness(0))

    # ([0.6, 0.8] + [0.6, 0]) / (0.5 · 8)
    torch.testing.assert_close(mean, torch.tensor([0.3, 0.2], dtype=torch.float64), atol=1e-7, rtol=0)


def test_noise_stands_whether_anybody_takes_part_or_not() -> None:
    privacy = make_config("privacy.max_update_norm=0.25").privacy
    like = [torch.zeros(100, 100), torch.zeros(5000)]
    for updates in ([], [like], [like] * 3):
        mean = noisy_mean(updates, like, privacy, Spend(2.0, 0.5, 1), 4, TorchRandomness(1))
        for tensor in mean:
            assert tensor.std().item() == pytest.approx(2.0 * 0.25 / 2, rel=0.03)


@pytest.mark.parametrize("drawn", [1, 3, 6])
def test_a_whole_run_is_within_the_budget(drawn: int) -> None:
    config = make_config("federation.num_clients=6", f"federation.clients_per_round={drawn}", "train.num_rounds=7")
    spend = whole_run(config.privacy, config.train, config.federation)

    assert (spend.sample_rate, spend.steps) == (drawn / 6, 7)
    assert 0.9 * 6 < epsilon([spend], 1e-5) <= 6

"""Tests of clipping statistics: their values, their privacy cost, and the gradient noise that pays for it."""

import pytest
import torch
from torch import Tensor, nn

from fedsvd.privacy.clipping_statistics import GRADIENT_NOISE_FACTOR, ClippingMeter, statistics_noise_std
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.randomness import TorchRandomness


class NoiselessRandomness(TorchRandomness):
    """Randomness with real batches but without noise, which records the requested standard deviations."""

    def __init__(self) -> None:
        super().__init__(0)
        self.stds: list[float] = []

    def normal(self, like: Tensor, std: float) -> Tensor:
        self.stds.append(std)
        return torch.zeros_like(like)


def test_joint_release_costs_the_same_as_gradients_alone() -> None:
    sigma = 1.7
    # Precisions of Gaussian mechanisms add up: (sensitivity / std)².
    joint_precision = (1 / (sigma * GRADIENT_NOISE_FACTOR)) ** 2 + 2 * (0.5 / statistics_noise_std(sigma)) ** 2
    assert joint_precision == pytest.approx((1 / sigma) ** 2, rel=1e-12)


def test_one_example_changes_each_sum_by_at_most_its_sensitivity() -> None:
    for norm in (0.0, 0.3, 2.0, 5.0, 1e9):
        meter = ClippingMeter(1.0, 2.0, 1.0, NoiselessRandomness())
        meter.add(torch.tensor([norm]))
        sums = meter._sums
        assert sums is not None
        assert (sums.abs() <= 0.5).all()


def test_statistics_match_hand_computed_values() -> None:
    meter = ClippingMeter(1.0, 2.0, 4.0, NoiselessRandomness())
    meter.add(torch.tensor([1.0, 3.0]))
    meter.add(torch.tensor([4.0, 1.0]))
    meter.release()
    meter.add(torch.tensor([0.0, 0.0, 0.0, 0.0]))
    meter.release()

    # Step 1: half are clipped, with norms 1, 2, 2, 1 after clipping; step 2: none is clipped, and all norms are 0.
    assert meter.statistics.clipped_share == pytest.approx(0.25)
    assert meter.statistics.mean_grad_norm == pytest.approx((6 / 4 + 0) / 2)


def test_empty_batch_is_released_with_noise() -> None:
    randomness = NoiselessRandomness()
    meter = ClippingMeter(1.0, 2.0, 4.0, randomness)
    meter.release()
    assert randomness.stds == [statistics_noise_std(1.0)]
    assert meter.statistics.clipped_share == 0.5


def train(statistics: bool, factor: float = 1.0) -> tuple[NoiselessRandomness, object]:
    """Train with the losses of two examples multiplied by a factor."""
    torch.manual_seed(0)
    model, data, factors = nn.Linear(3, 2), torch.randn(40, 3), torch.ones(40)
    factors[[2, 7]] = factor
    randomness = NoiselessRandomness()
    plan = DPSGD(2.0, 0.5, 0.5, 3, statistics=statistics)
    released = train_dp_sgd(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda m, positions: m(data[list(positions)]).square().sum(1) * factors[list(positions)],
        40,
        plan,
        randomness,
    )
    return randomness, released


def test_gradients_get_more_noise_only_with_statistics() -> None:
    without, no_statistics = train(statistics=False)
    with_them, released = train(statistics=True)

    assert no_statistics is None
    assert set(without.stds) == {2.0 * 0.5}
    assert set(with_them.stds) == {2.0 * 0.5 * GRADIENT_NOISE_FACTOR, statistics_noise_std(2.0)}
    assert with_them.stds.count(statistics_noise_std(2.0)) == 3
    assert 0 <= released.clipped_share <= 1  # type: ignore[attr-defined]
    assert 0 <= released.mean_grad_norm <= 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_an_example_without_a_finite_gradient_counts_as_one_of_norm_zero(factor: float) -> None:
    assert train(statistics=True, factor=factor)[1] == train(statistics=True, factor=0.0)[1]

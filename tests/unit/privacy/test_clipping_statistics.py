"""Clipping statistics: what they measure, what they cost, and that gradients pay for them."""

import pytest
import torch
from torch import Tensor, nn

from fedsvd.privacy.clipping_statistics import GRADIENT_NOISE_FACTOR, ClippingMeter, statistics_noise_std
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.randomness import TorchRandomness


class Exact(TorchRandomness):
    """Draws batches as ever, and no noise; remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(0)
        self.stds: list[float] = []

    def normal(self, like: Tensor, std: float) -> Tensor:
        self.stds.append(std)
        return torch.zeros_like(like)


def test_gradients_and_both_sums_cost_together_what_gradients_alone_would() -> None:
    sigma = 1.7
    # Precisions of Gaussian mechanisms add up: (sensitivity / std)².
    together = (1 / (sigma * GRADIENT_NOISE_FACTOR)) ** 2 + 2 * (0.5 / statistics_noise_std(sigma)) ** 2
    assert together == pytest.approx((1 / sigma) ** 2, rel=1e-12)


def test_one_example_moves_each_sum_by_no_more_than_its_sensitivity() -> None:
    for norm in (0.0, 0.3, 2.0, 5.0, 1e9):
        meter = ClippingMeter(1.0, 2.0, 1.0, Exact())
        meter.add(torch.tensor([norm]))
        assert (meter._sums.abs() <= 0.5).all()


def test_shares_and_lengths_by_hand() -> None:
    meter = ClippingMeter(1.0, 2.0, 4.0, Exact())
    meter.add(torch.tensor([1.0, 3.0]))
    meter.add(torch.tensor([4.0, 1.0]))
    meter.release()
    meter.add(torch.tensor([0.0, 0.0, 0.0, 0.0]))
    meter.release()

    # Step 1: half are clipped, lengths 1, 2, 2, 1; step 2: none, and all are 0.
    assert meter.statistics.clipped_share == pytest.approx(0.25)
    assert meter.statistics.mean_grad_norm == pytest.approx((6 / 4 + 0) / 2)


def test_an_empty_batch_is_released_too() -> None:
    randomness = Exact()
    meter = ClippingMeter(1.0, 2.0, 4.0, randomness)
    meter.release()
    assert randomness.stds == [statistics_noise_std(1.0)]
    assert meter.statistics.clipped_share == 0.5


def train(statistics: bool) -> tuple[Exact, object]:
    torch.manual_seed(0)
    model, data = nn.Linear(3, 2), torch.randn(40, 3)
    randomness = Exact()
    plan = DPSGD(2.0, 0.5, 0.5, 3, statistics=statistics)
    seen = train_dp_sgd(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda m, positions: m(data[list(positions)]).square().sum(1),
        40,
        plan,
        randomness,
    )
    return randomness, seen


def test_gradients_get_half_a_percent_more_noise_and_only_where_it_is_needed() -> None:
    without, nothing = train(statistics=False)
    with_them, seen = train(statistics=True)

    assert nothing is None
    assert set(without.stds) == {2.0 * 0.5}
    assert set(with_them.stds) == {2.0 * 0.5 * GRADIENT_NOISE_FACTOR, statistics_noise_std(2.0)}
    assert with_them.stds.count(statistics_noise_std(2.0)) == 3
    assert 0 <= seen.clipped_share <= 1  # type: ignore[attr-defined]
    assert 0 <= seen.mean_grad_norm <= 0.5  # type: ignore[attr-defined]

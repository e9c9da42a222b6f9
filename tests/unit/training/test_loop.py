"""Local training without privacy."""

import math

import pytest
import torch
from torch import nn
from train_configs import train_config

from fedsvd.privacy.physical_batches import BatchLimit
from fedsvd.training.loop import make_optimizer, train_plain


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimizer_has_the_learning_rate_of_the_round(optimizer: str) -> None:
    built = make_optimizer(
        [nn.Parameter(torch.ones(1))],
        train_config(optimizer=optimizer, lr_scheduler_type="linear", weight_decay=0.1),
        3,
    )

    assert built.param_groups[0]["lr"] == 0.25
    assert built.param_groups[0]["weight_decay"] == 0.1


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))


def squares(model: nn.Module, positions: list[int]) -> torch.Tensor:
    """Return the losses (w − i)², whose gradient is 2 (w − i)."""
    return (model.weight - torch.tensor(positions, dtype=torch.float32)) ** 2


def test_one_step_is_taken_per_batch_and_none_for_an_empty_batch() -> None:
    model = Line()
    loss = train_plain(model, make_optimizer([model.weight], train_config(), 1), squares, [[1, 3], [], [5]])

    # w: 0 → 0 + 0.5·2·2 = 2 → 2 + 0.5·2·3 = 5; losses (1 + 9)/2 and 9.
    assert model.weight.item() == 5.0
    assert loss == 7.0
    assert math.isnan(train_plain(model, make_optimizer([model.weight], train_config(), 1), squares, [[], []]))


@pytest.mark.parametrize(("clip_grad_norm", "weight"), [(None, 1.0), (1.0, 0.1), (20.0, 1.0)])
def test_the_gradient_of_a_batch_is_clipped(clip_grad_norm: float | None, weight: float) -> None:
    model = Line()
    # The gradient is -10.
    train_plain(model, torch.optim.SGD(model.parameters(), 0.1), squares, [[5]], clip_grad_norm)
    assert model.weight.item() == pytest.approx(weight)


@pytest.mark.parametrize("clip_grad_norm", [None, 1.0])
def test_a_batch_in_physical_batches_takes_the_same_step(clip_grad_norm: float | None) -> None:
    batch, lengths, results = [0, 1, 2, 3, 5], [3, 1, 2, 4, 5, 6], []
    for size in (None, 2):
        model = Line()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss = train_plain(model, optimizer, squares, [batch], clip_grad_norm, (), size and BatchLimit(size), lengths)
        results.append((model.weight.item(), loss))
    assert results[0] == pytest.approx(results[1], rel=1e-6)

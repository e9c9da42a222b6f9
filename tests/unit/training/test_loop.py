"""Local training without privacy, and evaluation."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from fedsvd.config import TrainConfig
from fedsvd.training.loop import evaluate, make_optimizer, train_plain
from fedsvd.training.prefix_cache import MemoryBudget, PrefixCache, StateStore


def config(**changes: object) -> TrainConfig:
    values = {"optimizer": "sgd", "learning_rate": 0.5, "num_rounds": 4, "local_steps": 1, "batch_size": 2} | changes
    return TrainConfig(**values)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimizer_has_the_learning_rate_of_the_round(optimizer: str) -> None:
    built = make_optimizer(
        [nn.Parameter(torch.ones(1))], config(optimizer=optimizer, lr_scheduler_type="linear", weight_decay=0.1), 3
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
    loss = train_plain(model, make_optimizer([model.weight], config(), 1), squares, [[1, 3], [], [5]])

    # w: 0 → 0 + 0.5·2·2 = 2 → 2 + 0.5·2·3 = 5; losses (1 + 9)/2 and 9.
    assert model.weight.item() == 5.0
    assert loss == 7.0
    assert math.isnan(train_plain(model, make_optimizer([model.weight], config(), 1), squares, [[], []]))


class IdentityModel(nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        return type("Output", (), {"logits": input_ids})()


def test_evaluation_weighs_examples_equally_across_batches() -> None:
    right, wrong = [[0.0, 50.0]], [[50.0, 0.0]]
    batches = [
        {
            "input_ids": torch.tensor(rows),
            "attention_mask": torch.ones(len(rows)),
            "labels": torch.ones(len(rows)).long(),
        }
        for rows in (right * 3, wrong)
    ]
    result = evaluate(IdentityModel(), batches, torch.device("cpu"))

    assert (result.accuracy, result.num_examples) == (0.75, 4)
    assert result.loss == pytest.approx(12.5)


class RecordingCache(PrefixCache):
    """A disabled cache that records the batch sizes it is called with."""

    def __init__(self) -> None:
        super().__init__(IdentityModel(), StateStore(MemoryBudget(0)))
        self.batch_sizes: list[int] = []

    @contextmanager
    def reuse_states(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> Iterator[None]:
        self.batch_sizes.append(len(inputs["input_ids"]))
        yield


def test_evaluation_uses_the_cache_from_the_first_batch() -> None:
    batch = {
        "input_ids": torch.tensor([[0.0, 50.0]] * 2),
        "attention_mask": torch.ones(2),
        "labels": torch.ones(2).long(),
    }
    prefix = RecordingCache()
    evaluate(IdentityModel(), [batch, batch], torch.device("cpu"), prefix)
    assert prefix.batch_sizes == [2, 2]


def test_a_batch_in_physical_batches_takes_the_same_step() -> None:
    batch, lengths, results = [0, 1, 2, 3, 5], [3, 1, 2, 4, 5, 6], []
    for size in (None, 2):
        model = Line()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss = train_plain(model, optimizer, squares, [batch], 1.0, (), size, lengths)
        results.append((model.weight.item(), loss))
    assert results[0] == pytest.approx(results[1], rel=1e-6)

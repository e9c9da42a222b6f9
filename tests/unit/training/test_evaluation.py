"""Evaluation over batches."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from fedsvd.training.evaluation import evaluate
from fedsvd.training.objectives import make_objective
from fedsvd.training.prefix_cache import PrefixCache
from fedsvd.training.state_store import MemoryBudget, StateStore

OBJECTIVE = make_objective("sequence_classification")


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
    result = evaluate(IdentityModel(), batches, torch.device("cpu"), OBJECTIVE)

    assert (result.accuracy, result.num_examples) == (0.75, 4)
    assert result.loss == pytest.approx(12.5)


def test_dropout_is_disabled_in_an_evaluation() -> None:
    model = IdentityModel().train()
    batch = {"input_ids": torch.zeros(1, 2), "attention_mask": torch.ones(1), "labels": torch.ones(1).long()}
    evaluate(model, [batch], torch.device("cpu"), OBJECTIVE)
    assert not model.training


class RecordingCache(PrefixCache):
    """A disabled cache that records the batch sizes it is called with."""

    def __init__(self) -> None:
        super().__init__(IdentityModel(), StateStore(MemoryBudget(0)))
        self.batch_sizes: list[int] = []

    @contextmanager
    def reuse_states(self, model: nn.Module, inputs: dict[str, torch.Tensor], on_cpu: object = None) -> Iterator[None]:
        self.batch_sizes.append(len(inputs["input_ids"]))
        yield


def test_evaluation_uses_the_cache_from_the_first_batch() -> None:
    batch = {
        "input_ids": torch.tensor([[0.0, 50.0]] * 2),
        "attention_mask": torch.ones(2),
        "labels": torch.ones(2).long(),
    }
    prefix = RecordingCache()
    evaluate(IdentityModel(), [batch, batch], torch.device("cpu"), OBJECTIVE, prefix)
    assert prefix.batch_sizes == [2, 2]

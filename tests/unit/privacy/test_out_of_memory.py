"""Physical batches that do not fit are tried again in smaller ones, without an effect on the result or its privacy."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_bert import NUM_EXAMPLES, make_losses, make_model
from torch import Tensor, nn

from fedsvd.config import TrainConfig
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.physical_batches import BatchLimit, run_physical_batches
from fedsvd.privacy.randomness import TorchRandomness
from fedsvd.training.loop import make_optimizer, train_plain
from fedsvd.training.per_example_gradients import fused_gradients

FITS = 4


class Counted(TorchRandomness):
    """Counts the noise tensors."""

    draws = 0

    def normal(self, like: Tensor, std: float) -> Tensor:
        self.draws += 1
        return super().normal(like, std)


class Exhausted:
    """Losses whose backward pass runs out of memory in the middle, with more than `FITS` examples."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.losses = make_losses()

    def __call__(self, model: nn.Module, positions: Sequence[int]) -> Tensor:
        self.sizes.append(len(positions))
        layer = next(m for name, m in model.named_modules() if name.endswith("encoder.layer.1.attention"))

        def fail(gradient: Tensor) -> None:
            raise torch.OutOfMemoryError("simulated")

        def watch(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
            if len(positions) > FITS:
                output[0].register_hook(fail)

        with layer.register_forward_hook(watch):
            return self.losses(model, positions)


def train(losses: Any, limit: BatchLimit, randomness: TorchRandomness) -> list[Tensor]:
    model, trained = make_model({"B", "head"})
    mechanism = DPSGD(1.0, 0.05, sample_rate=0.9, steps=4, physical_batch_size=limit)
    optimizer = torch.optim.SGD(trained, lr=1.0)
    train_dp_sgd(model, optimizer, losses, NUM_EXAMPLES, mechanism, randomness, fused_gradients)
    return [parameter.detach() for parameter in trained]


def test_a_private_step_that_does_not_fit_takes_the_same_step_with_the_same_noise() -> None:
    reference, counted, losses, limit = Counted(3), Counted(3), Exhausted(), BatchLimit()
    expected = train(make_losses(), BatchLimit(NUM_EXAMPLES), reference)

    actual = train(losses, limit, counted)

    assert max(losses.sizes) > FITS
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)
    assert counted.draws == reference.draws
    assert limit.fits == FITS


def test_training_without_privacy_has_the_same_gradient() -> None:
    config = TrainConfig("sgd", 0.5, 1, 1, 1)
    results = []
    for losses, limit in ((make_losses(), None), (Exhausted(), BatchLimit())):
        model, trained = make_model({"B", "head"})
        train_plain(model, make_optimizer(trained, config, 1), losses, [list(range(NUM_EXAMPLES))] * 2, limit=limit)
        results.append([parameter.detach() for parameter in trained])
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-4)


def test_a_given_size_is_not_changed() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train(Exhausted(), BatchLimit(FITS + 1), TorchRandomness(0))


@given(st.integers(1, 40), st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_every_example_is_counted_once_and_the_largest_size_is_found(capacity: int, sizes: list[int]) -> None:
    limit = BatchLimit()

    def compute(part: list[int]) -> None:
        if len(part) > capacity:
            raise torch.OutOfMemoryError("simulated")

    for size in [*sizes, *[50] * 12]:
        done: list[int] = []
        ends: list[bool] = []

        def accumulate(part: list[int], is_last: bool, done: list[int] = done, ends: list[bool] = ends) -> None:
            done.extend(part)
            ends.append(is_last)

        run_physical_batches(range(size), limit, (), compute, lambda: None, accumulate)
        assert sorted(done) == list(range(size))
        assert ends == [False] * (len(ends) - 1) + [True]
    assert capacity - limit.fits <= max(1, capacity // 8)

"""Noise drawn on a thread of its own equals noise drawn in turn, and overlaps with the gradients."""

import threading

import pytest
import torch
from small_bert import NUM_EXAMPLES, make_losses, make_model
from torch import Tensor, nn

from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.noise_ahead import NoiseAhead
from fedsvd.privacy.randomness import SecureRandomness

KEY = bytes(range(32))


class WatchedRandomness(SecureRandomness):
    """Records which threads draw noise, and signals when a draw begins."""

    def __init__(self) -> None:
        super().__init__(KEY)
        self.threads: list[str] = []
        self.begun = threading.Event()

    def normal(self, like: Tensor, std: float) -> Tensor:
        self.threads.append(threading.current_thread().name)
        self.begun.set()
        return super().normal(like, std)


def test_noise_equals_that_of_draws_in_turn() -> None:
    likes = [torch.zeros(3, 5), torch.zeros(2, dtype=torch.float64)]
    direct = SecureRandomness(KEY)
    with NoiseAhead(SecureRandomness(KEY)) as ahead:
        for std in (2.0, 0.5):
            ahead.request(likes, std)
            for noise, like in zip(ahead.take(), likes, strict=True):
                assert noise.dtype == like.dtype
                assert torch.equal(noise, direct.normal(like, std))
        with pytest.raises(RuntimeError, match="taken once"):
            ahead.take()


def test_noise_of_a_failed_step_is_never_used() -> None:
    direct, like = SecureRandomness(KEY), torch.zeros(4)
    unused, expected = direct.normal(like, 1.0), direct.normal(like, 1.0)
    with NoiseAhead(SecureRandomness(KEY)) as ahead:
        ahead.request([like], 1.0)
        ahead.request([like], 1.0)
        noise = ahead.take()[0]
    assert torch.equal(noise, expected)
    assert not torch.equal(noise, unused)


def test_noise_is_drawn_while_gradients_are_computed() -> None:
    model, trained = make_model({"B"})
    randomness, losses = WatchedRandomness(), make_losses()

    def waiting_losses(model: nn.Module, positions: list[int]) -> Tensor:
        # Deadlocks if the noise is only drawn after the gradients.
        assert randomness.begun.wait(20), "no noise was being drawn during the step"
        return losses(model, positions)

    train_dp_sgd(
        model,
        torch.optim.SGD(trained, lr=1.0),
        waiting_losses,  # type: ignore[arg-type]
        NUM_EXAMPLES,
        DPSGD(noise_multiplier=1.0, max_grad_norm=0.05, sample_rate=1.0, steps=2),
        randomness,
    )

    assert len(randomness.threads) == 2 * len(trained)
    assert all(name.startswith("fedsvd-noise") for name in randomness.threads)
    assert not any(thread.name.startswith("fedsvd-noise") for thread in threading.enumerate())

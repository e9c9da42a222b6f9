"""Canaries go through the real DP-SGD: sampled, clipped, summed and noised like any example."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsvd.errors import PrivacyError
from fedsvd.privacy.canaries import DiracCanaries, draw_canaries
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.randomness import TorchRandomness

NUM_EXAMPLES = 10
CLIP = 0.5


def flat_losses(model: nn.Module, positions: Sequence[int]) -> Tensor:
    """Examples without a gradient, so that canaries alone move the parameters; every parameter is used."""
    return model(torch.zeros(len(positions), 4)).sum(dim=1) * 0.0


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def release(canaries: DiracCanaries | None, losses: object = flat_losses, **changes: float) -> Tensor:
    """Return the negative update of all parameters, end to end, in units of one clipped gradient."""
    torch.manual_seed(0)
    model = make_model()
    values = {"noise_multiplier": 0.0, "max_grad_norm": CLIP, "sample_rate": 1.0, "steps": 1} | changes
    plan = DPSGD(**values)  # type: ignore[arg-type]
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train_dp_sgd(model, optimizer, losses, NUM_EXAMPLES, plan, TorchRandomness(1), canaries=canaries)  # type: ignore[arg-type]
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return (before - after) * plan.sample_rate * NUM_EXAMPLES / CLIP


def canaries(included: Sequence[bool], norm: float = 10 * CLIP) -> DiracCanaries:
    coordinates = np.array([0, 13, 22, 5])[: len(included)]
    signs = np.array([1.0, -1.0, 1.0, -1.0])[: len(included)]
    return DiracCanaries(coordinates, signs, np.array(included), norm, np.zeros(len(included)))


def test_a_canary_moves_its_own_coordinate_by_one_clipped_gradient() -> None:
    moved = release(canaries([True, True, False, True]))

    expected = torch.zeros(23)
    expected[[0, 13, 5]] = torch.tensor([1.0, -1.0, -1.0])
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_without_clipping_it_moves_it_by_its_whole_norm() -> None:
    moved = release(canaries([True]), max_grad_norm=1e6)
    assert moved[0].item() * CLIP == pytest.approx(10 * CLIP, rel=1e-4)


def test_it_is_sampled_at_the_rate_of_the_examples() -> None:
    moved = release(canaries([True, True]), sample_rate=0.3, steps=400)
    np.testing.assert_allclose(moved[[0, 13]].abs().numpy() / 400, 0.3, atol=0.08)
    assert moved[[1, 2, 3, 5, 22]].abs().max() < 1e-4


def test_it_is_noised_like_the_rest() -> None:
    still, noised = release(canaries([True])), release(canaries([True]), noise_multiplier=0.5)
    assert (noised - still)[0].abs() > 1e-3
    assert (noised - still).std() == pytest.approx(0.5, rel=0.4)


def test_real_examples_are_untouched_by_its_presence() -> None:
    def losses(model: nn.Module, positions: Sequence[int]) -> Tensor:
        return model(torch.arange(4.0 * len(positions)).reshape(-1, 4)).sum(dim=1)

    without, beside = release(None, losses), release(canaries([True]), losses)
    expected = without.clone()
    expected[0] += 1
    torch.testing.assert_close(beside, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 11])
def test_physical_batches_split_them_too(size: int) -> None:
    coins = [True, True, True, True]
    torch.testing.assert_close(release(canaries(coins), physical_batch_size=size), release(canaries(coins)))


def test_nobody_in_the_data_is_nobody_seen() -> None:
    torch.testing.assert_close(release(canaries([False, False])), torch.zeros(23))


def test_scores_are_what_is_released_along_the_gradient() -> None:
    released = [torch.zeros(3, 4), torch.tensor([0.0, -2.0, 0.0]), torch.zeros(2, 3), torch.tensor([0.0, 3.0])]
    watched = canaries([True, False, False])
    watched.known[:] = [1.0, 1.0, 1.0]

    assert watched.scores(released, subtract_known=False).tolist() == [0.0, 2.0, 3.0]
    assert watched.scores(released, subtract_known=True).tolist() == [-1.0, 3.0, 2.0]
    watched.forget()
    assert watched.scores(released, subtract_known=True).tolist() == [0.0, 2.0, 3.0]


@pytest.mark.parametrize("size", [4, 128])
def test_an_attacker_who_knows_the_data_sees_canaries_alone(size: int) -> None:
    """One example's gradient is clipped, one is not finite, the others are short; canaries stand out exactly."""

    def losses(model: nn.Module, positions: Sequence[int]) -> Tensor:
        weights = torch.tensor([1e-3, 5.0, float("inf"), *[1e-2] * 7])[list(positions)]
        return model(torch.arange(4.0 * len(positions)).reshape(-1, 4)).sum(dim=1) * weights

    watched = canaries([True, False, True, True])
    released = release(watched, losses, physical_batch_size=size, sample_rate=0.5, steps=7) * CLIP
    alone = release(canaries([True, False, True, True]), physical_batch_size=size, sample_rate=0.5, steps=7) * CLIP

    scores = watched.scores([released], subtract_known=True)
    assert np.abs(watched.known).max() > CLIP
    np.testing.assert_allclose(scores, canaries([True] * 4).scores([alone], subtract_known=False), atol=1e-3)


def test_draws_are_apart_and_fair() -> None:
    drawn = draw_canaries(5000, 6000, 2.0, np.random.default_rng(0))

    assert len(set(drawn.coordinates.tolist())) == drawn.total == 5000
    assert drawn.coordinates.min() >= 0
    assert drawn.coordinates.max() < 6000
    assert abs(drawn.count - 2500) < 150
    assert abs(drawn.signs.sum()) < 300


def test_more_canaries_than_trained_numbers_are_refused() -> None:
    with pytest.raises(PrivacyError, match="only 23 numbers are trained"):
        draw_canaries(24, 23, 1.0, np.random.default_rng(0))

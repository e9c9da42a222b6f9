"""Tests that real DP-SGD samples, clips, sums and noises canaries like any example."""

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
    """Return losses with zero gradients that use every parameter, so that only canaries change the parameters."""
    return model(torch.zeros(len(positions), 4)).sum(dim=1) * 0.0


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def release(canaries: DiracCanaries | None, losses: object = flat_losses, **changes: float) -> Tensor:
    """Return the concatenated negative update of all parameters, in units of one clipped gradient."""
    torch.manual_seed(0)
    model = make_model()
    values = {"noise_multiplier": 0.0, "max_grad_norm": CLIP, "sample_rate": 1.0, "steps": 1} | changes
    plan = DPSGD(**values)  # type: ignore[arg-type]
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train_dp_sgd(model, optimizer, losses, NUM_EXAMPLES, plan, TorchRandomness(1), canaries=canaries)  # type: ignore[arg-type]
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return (before - after) * plan.sample_rate * NUM_EXAMPLES / CLIP


def make_canaries(included: Sequence[bool], norm: float = 10 * CLIP) -> DiracCanaries:
    coordinates = np.array([0, 13, 22, 5])[: len(included)]
    signs = np.array([1.0, -1.0, 1.0, -1.0])[: len(included)]
    return DiracCanaries(coordinates, signs, np.array(included), norm, np.zeros(len(included)))


def test_canary_changes_its_own_coordinate_by_one_clipped_gradient() -> None:
    update = release(make_canaries([True, True, False, True]))

    expected = torch.zeros(23)
    expected[[0, 13, 5]] = torch.tensor([1.0, -1.0, -1.0])
    torch.testing.assert_close(update, expected, atol=1e-5, rtol=0)


def test_canary_without_clipping_contributes_its_full_norm() -> None:
    update = release(make_canaries([True]), max_grad_norm=1e6)
    assert update[0].item() * CLIP == pytest.approx(10 * CLIP, rel=1e-4)


def test_canaries_are_sampled_at_the_rate_of_the_examples() -> None:
    update = release(make_canaries([True, True]), sample_rate=0.3, steps=400)
    np.testing.assert_allclose(update[[0, 13]].abs().numpy() / 400, 0.3, atol=0.08)
    assert update[[1, 2, 3, 5, 22]].abs().max() < 1e-4


def test_canaries_are_noised_like_examples() -> None:
    without_noise, noised = release(make_canaries([True])), release(make_canaries([True]), noise_multiplier=0.5)
    assert (noised - without_noise)[0].abs() > 1e-3
    assert (noised - without_noise).std() == pytest.approx(0.5, rel=0.4)


def test_canaries_do_not_change_the_contribution_of_real_examples() -> None:
    def losses(model: nn.Module, positions: Sequence[int]) -> Tensor:
        return model(torch.arange(4.0 * len(positions)).reshape(-1, 4)).sum(dim=1)

    without, with_canary = release(None, losses), release(make_canaries([True]), losses)
    expected = without.clone()
    expected[0] += 1
    torch.testing.assert_close(with_canary, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 11])
def test_physical_batches_may_split_canaries(size: int) -> None:
    included = [True, True, True, True]
    torch.testing.assert_close(
        release(make_canaries(included), physical_batch_size=size), release(make_canaries(included))
    )


def test_excluded_canaries_contribute_nothing() -> None:
    torch.testing.assert_close(release(make_canaries([False, False])), torch.zeros(23))


def test_scores_are_released_values_along_the_gradient() -> None:
    released = [torch.zeros(3, 4), torch.tensor([0.0, -2.0, 0.0]), torch.zeros(2, 3), torch.tensor([0.0, 3.0])]
    observed = make_canaries([True, False, False])
    observed.known[:] = [1.0, 1.0, 1.0]

    assert observed.scores(released, subtract_known=False).tolist() == [0.0, 2.0, 3.0]
    assert observed.scores(released, subtract_known=True).tolist() == [-1.0, 3.0, 2.0]
    observed.reset_known()
    assert observed.scores(released, subtract_known=True).tolist() == [0.0, 2.0, 3.0]


@pytest.mark.parametrize("size", [4, 128])
def test_subtracting_known_data_isolates_canaries(size: int) -> None:
    """One example's gradient is clipped, one is not finite, the others are short; scores equal those without data."""

    def losses(model: nn.Module, positions: Sequence[int]) -> Tensor:
        weights = torch.tensor([1e-3, 5.0, float("inf"), *[1e-2] * 7])[list(positions)]
        return model(torch.arange(4.0 * len(positions)).reshape(-1, 4)).sum(dim=1) * weights

    observed = make_canaries([True, False, True, True])
    released = release(observed, losses, physical_batch_size=size, sample_rate=0.5, steps=7) * CLIP
    alone = release(make_canaries([True, False, True, True]), physical_batch_size=size, sample_rate=0.5, steps=7) * CLIP

    scores = observed.scores([released], subtract_known=True)
    assert np.abs(observed.known).max() > CLIP
    np.testing.assert_allclose(scores, make_canaries([True] * 4).scores([alone], subtract_known=False), atol=1e-3)


def test_draws_are_distinct_and_fair() -> None:
    drawn = draw_canaries(5000, 6000, 2.0, np.random.default_rng(0))

    assert len(set(drawn.coordinates.tolist())) == drawn.total == 5000
    assert drawn.coordinates.min() >= -6000
    assert drawn.coordinates.max() < 0
    assert abs(drawn.count - 2500) < 150
    assert abs(drawn.signs.sum()) < 300


def test_more_canaries_than_trained_values_are_rejected() -> None:
    with pytest.raises(PrivacyError, match="only 23 values are trained"):
        draw_canaries(24, 23, 1.0, np.random.default_rng(0))


def test_every_trained_value_can_have_a_canary() -> None:
    canaries = draw_canaries(6, 6, 1.0, np.random.default_rng(0))
    assert sorted(canaries.coordinates) == list(range(-6, 0))
    with pytest.raises(PrivacyError, match="7 canaries need one trained value each, but only 6"):
        draw_canaries(7, 6, 1.0, np.random.default_rng(0))

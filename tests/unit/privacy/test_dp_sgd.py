"""DP-SGD compared with loops over single examples, on a real PEFT model."""

from collections.abc import Sequence

import pytest
import torch
from small_bert import NUM_EXAMPLES, make_losses, make_model, single_example_gradients
from torch import Tensor, nn

from fedsvd.errors import PrivacyError
from fedsvd.lora.adapter import Part
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.grad_sample_modes import GradSampleMode, opacus_hooks, per_example_gradients
from fedsvd.privacy.randomness import TorchRandomness, poisson_batches
from fedsvd.training.per_example_gradients import fused_gradients

PARTS: list[set[Part]] = [{"B"}, {"B", "head"}, {"A", "B", "head"}]


def make_mechanism(**changes: float) -> DPSGD:
    values = {"noise_multiplier": 0.0, "max_grad_norm": 0.05, "sample_rate": 1.0, "steps": 1} | changes
    return DPSGD(**values)  # type: ignore[arg-type]


def run(
    model: nn.Module,
    trained: list[nn.Parameter],
    mechanism: DPSGD,
    *,
    seed: int = 0,
    lr: float = 1.0,
    grad_sample_mode: GradSampleMode = opacus_hooks,
) -> None:
    train_dp_sgd(
        model,
        torch.optim.SGD(trained, lr=lr),
        make_losses(),
        NUM_EXAMPLES,
        mechanism,
        TorchRandomness(seed),
        grad_sample_mode,
    )


def values(trained: list[nn.Parameter]) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1).clone() for parameter in trained])


GRAD_SAMPLE_MODES = pytest.mark.parametrize("grad_sample_mode", [opacus_hooks, fused_gradients], ids=["hooks", "fused"])


@GRAD_SAMPLE_MODES
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(sorted(parts)))
def test_per_example_gradients_equal_a_loop(parts: set[Part], grad_sample_mode: GradSampleMode) -> None:
    model, trained = make_model(parts)
    names = {parameter: name for name, parameter in model.named_parameters()}

    found = per_example_gradients(model, make_losses(), range(NUM_EXAMPLES), grad_sample_mode)

    assert len(found) == len(trained)
    for position in range(NUM_EXAMPLES):
        for parameter, expected in zip(trained, single_example_gradients(model, trained, position), strict=True):
            gradient = found[names[parameter]][position]
            torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


@GRAD_SAMPLE_MODES
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(sorted(parts)))
def test_step_clips_each_example_over_all_trained_parameters(
    parts: set[Part], grad_sample_mode: GradSampleMode
) -> None:
    model, trained = make_model(parts)
    before = values(trained)
    gradients = [
        torch.cat([g.reshape(-1) for g in single_example_gradients(model, trained, i)]) for i in range(NUM_EXAMPLES)
    ]
    bound = sorted(gradient.norm().item() for gradient in gradients)[NUM_EXAMPLES // 2]
    clipped = sum(gradient * min(1.0, bound / gradient.norm().item()) for gradient in gradients)

    run(model, trained, make_mechanism(max_grad_norm=bound), grad_sample_mode=grad_sample_mode)

    torch.testing.assert_close(values(trained), before - clipped / NUM_EXAMPLES, atol=1e-6, rtol=1e-4)


@GRAD_SAMPLE_MODES
def test_class_weights_change_gradients_before_they_are_clipped(grad_sample_mode: GradSampleMode) -> None:
    model, trained = make_model({"A", "B", "head"})
    weighted, before, bound = make_losses([0.5, 1000.0]), values(trained), 0.05
    weights = (weighted(model, range(NUM_EXAMPLES)) / make_losses()(model, range(NUM_EXAMPLES))).detach()
    assert sorted(set(weights.round(decimals=3).tolist())) == [0.5, 1000.0]
    gradients = [
        weight * torch.cat([g.reshape(-1) for g in single_example_gradients(model, trained, i)])
        for i, weight in enumerate(weights)
    ]

    found = per_example_gradients(model, weighted, range(NUM_EXAMPLES), grad_sample_mode)
    names = [name for parameter in trained for name, other in model.named_parameters() if other is parameter]
    for i, expected in enumerate(gradients):
        actual = torch.cat([found[name][i].reshape(-1) for name in names])
        torch.testing.assert_close(actual, expected, atol=1e-5 * float(weights[i]), rtol=1e-4)

    # However large its weight, an example adds at most the clipping norm: the sensitivity is that without weights.
    clipped = sum(gradient * min(1.0, bound / gradient.norm().item()) for gradient in gradients)
    optimizer, mechanism = torch.optim.SGD(trained, lr=1.0), make_mechanism(max_grad_norm=bound)
    train_dp_sgd(model, optimizer, weighted, NUM_EXAMPLES, mechanism, TorchRandomness(0), grad_sample_mode)
    torch.testing.assert_close(values(trained), before - clipped / NUM_EXAMPLES, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("factor", [torch.nan, torch.inf, 1e30])
def test_example_without_a_finite_gradient_counts_as_zero(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    """1e30 is finite, but its square is not."""
    inner = make_losses()

    def losses(model: nn.Module, positions: Sequence[int]) -> Tensor:
        return inner(model, positions) * torch.tensor([factor if i in (2, 7) else 1.0 for i in positions])

    def without(model: nn.Module, positions: Sequence[int]) -> Tensor:
        return inner(model, positions) * torch.tensor([0.0 if i in (2, 7) else 1.0 for i in positions])

    outcomes = []
    for function in (losses, without):
        model, trained = make_model({"B", "head"})
        train_dp_sgd(
            model, torch.optim.SGD(trained, lr=1.0), function, NUM_EXAMPLES, make_mechanism(), TorchRandomness(0)
        )
        outcomes.append(values(trained))

    torch.testing.assert_close(outcomes[0], outcomes[1], atol=1e-7, rtol=0)
    assert "2 examples had gradients that are not finite" in caplog.text


def test_the_divisor_is_the_expected_batch_size() -> None:
    model, trained = make_model({"B"})
    before = values(trained)
    batch = next(poisson_batches(NUM_EXAMPLES, 0.5, 1, torch.Generator().manual_seed(3)))
    assert len(batch) != 6
    total = sum(torch.cat([g.reshape(-1) for g in single_example_gradients(model, trained, i)]) for i in batch)

    run(model, trained, make_mechanism(max_grad_norm=1e6, sample_rate=0.5), seed=3)

    torch.testing.assert_close(values(trained), before - total / 6, atol=1e-5, rtol=1e-4)


@GRAD_SAMPLE_MODES
def test_empty_batch_takes_a_noisy_step_of_the_expected_size(grad_sample_mode: GradSampleMode) -> None:
    model, trained = make_model({"A", "B", "head"})
    before = values(trained)
    assert next(poisson_batches(NUM_EXAMPLES, 1e-6, 1, torch.Generator().manual_seed(0))) == []

    mechanism = make_mechanism(noise_multiplier=2.0, max_grad_norm=0.3, sample_rate=1e-6)
    run(model, trained, mechanism, grad_sample_mode=grad_sample_mode)

    update = values(trained) - before
    expected = 2.0 * 0.3 / (1e-6 * NUM_EXAMPLES)
    assert update.std().item() == pytest.approx(expected, rel=0.1)
    assert abs(update.mean().item()) < 4 * expected / len(update) ** 0.5


def test_noise_is_added_to_the_clipped_sum() -> None:
    runs = {}
    for noise_multiplier in (0.0, 3.0):
        model, trained = make_model({"A", "B", "head"})
        run(model, trained, make_mechanism(noise_multiplier=noise_multiplier))
        runs[noise_multiplier] = values(trained)

    noise = runs[3.0] - runs[0.0]
    assert noise.std().item() == pytest.approx(3.0 * 0.05 / NUM_EXAMPLES, rel=0.1)


def test_number_of_steps_does_not_depend_on_the_batches() -> None:
    model, trained = make_model({"B"})
    optimizer = torch.optim.SGD(trained, lr=0.1)
    optimizer_steps = []
    optimizer.register_step_post_hook(lambda *_: optimizer_steps.append(1))

    train_dp_sgd(
        model,
        optimizer,
        make_losses(),
        NUM_EXAMPLES,
        make_mechanism(noise_multiplier=1.0, sample_rate=0.05, steps=20),
        TorchRandomness(0),
    )

    assert len(optimizer_steps) == 20


@GRAD_SAMPLE_MODES
@pytest.mark.parametrize("size", [1, 5, 12])
def test_result_does_not_depend_on_physical_batch_size_or_mode(size: int, grad_sample_mode: GradSampleMode) -> None:
    reference, split = make_model({"B", "head"}), make_model({"B", "head"})

    run(*reference, make_mechanism(noise_multiplier=1.0, steps=3))
    run(
        *split,
        make_mechanism(noise_multiplier=1.0, steps=3, physical_batch_size=size),
        grad_sample_mode=grad_sample_mode,
    )

    torch.testing.assert_close(values(split[1]), values(reference[1]), atol=1e-6, rtol=1e-4)


def test_global_seed_does_not_affect_noise() -> None:
    outcomes = []
    for global_seed in (1, 2):
        model, trained = make_model({"B"})
        torch.manual_seed(global_seed)
        run(model, trained, make_mechanism(noise_multiplier=1.0))
        outcomes.append(values(trained))

    assert torch.equal(outcomes[0], outcomes[1])


@GRAD_SAMPLE_MODES
def test_model_is_restored_after_training(grad_sample_mode: GradSampleMode) -> None:
    model, trained = make_model({"B"})
    hooks = sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())

    run(model, trained, make_mechanism(steps=2), grad_sample_mode=grad_sample_mode)

    assert not any("forward" in vars(module) for module in model.modules())
    assert sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()) == hooks
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())
    make_losses()(model, [0, 1]).mean().backward()
    assert trained[0].grad is not None


def test_failing_loss_leaves_no_hooks() -> None:
    model, trained = make_model({"B"})

    def broken(model: nn.Module, positions: Sequence[int]) -> Tensor:
        raise ValueError("no such example")

    with pytest.raises(ValueError, match="no such example"):
        train_dp_sgd(
            model,
            torch.optim.SGD(trained, lr=1.0),
            broken,
            NUM_EXAMPLES,
            make_mechanism(),
            TorchRandomness(0),
        )
    run(model, trained, make_mechanism())


def test_unsupported_layers_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    with pytest.raises(PrivacyError, match="BatchNorm"):
        per_example_gradients(model, make_losses(), [0])

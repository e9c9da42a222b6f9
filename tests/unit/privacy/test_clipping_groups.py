"""Separate clipping of head and factors, compared with a loop over single examples."""

import math

import pytest
import torch
from small_bert import NUM_EXAMPLES, make_losses, make_model
from torch import Tensor, nn

from fedsvd.privacy.clipping_groups import split_by_share
from fedsvd.privacy.clipping_statistics import ClippingMeter
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.grad_sample_modes import GradSampleMode, opacus_hooks
from fedsvd.privacy.randomness import TorchRandomness
from fedsvd.training.per_example_gradients import fused_gradients

C, SHARE = 0.05, 0.6


def head_of(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]


def clipped_gradient(model: nn.Module, trained: list[nn.Parameter], position: int) -> tuple[list[Tensor], float]:
    """Return one example's gradient, clipped by hand, and its joint norm."""
    head = {id(p) for p in head_of(model)}
    gradients = torch.autograd.grad(make_losses()(model, [position]).sum(), trained)
    clipped = [torch.zeros_like(g) for g in gradients]
    for in_head, bound in ((True, SHARE * C), (False, math.sqrt(1 - SHARE**2) * C)):
        rows = [i for i, p in enumerate(trained) if (id(p) in head) == in_head]
        norm = math.sqrt(sum(float(gradients[i].square().sum()) for i in rows))
        for i in rows:
            clipped[i] = gradients[i] * min(1.0, bound / norm)
    return clipped, math.sqrt(sum(float(g.square().sum()) for g in clipped))


def train(
    share: float | None, mode: GradSampleMode, physical: int = 128, parts: tuple[str, ...] = ("B", "head")
) -> tuple[list[Tensor], nn.Module, list[nn.Parameter]]:
    model, trained = make_model(set(parts))  # type: ignore[arg-type]
    before = [p.detach().clone() for p in trained]
    mechanism = DPSGD(0.0, C, 1.0, 1, physical, head_clipping_share=share)
    train_dp_sgd(
        model, torch.optim.SGD(trained, lr=1.0), make_losses(), NUM_EXAMPLES, mechanism, TorchRandomness(0), mode,
        head=head_of(model),
    )  # fmt: skip
    return [old - p.detach() for old, p in zip(before, trained, strict=True)], model, trained


@pytest.mark.parametrize("mode", [opacus_hooks, fused_gradients], ids=["hooks", "fused"])
@pytest.mark.parametrize("physical", [128, 3])
def test_a_step_is_the_mean_of_gradients_clipped_one_by_one(mode: GradSampleMode, physical: int) -> None:
    steps, _, _ = train(SHARE, mode, physical)
    model, trained = make_model({"B", "head"})
    each = [clipped_gradient(model, trained, i) for i in range(NUM_EXAMPLES)]

    # The joint sensitivity is that of common clipping, and every example uses up most of it here.
    assert all(norm <= C * (1 + 1e-6) for _, norm in each)
    assert min(norm for _, norm in each) > 0.5 * C
    for step, gradients in zip(steps, zip(*(g for g, _ in each), strict=True), strict=True):
        torch.testing.assert_close(step, sum(gradients) / NUM_EXAMPLES, atol=1e-7, rtol=1e-4)


def test_it_differs_from_common_clipping_only_where_both_are_trained() -> None:
    separate, common = train(SHARE, fused_gradients)[0], train(None, fused_gradients)[0]
    assert any((a - b).abs().max() > 1e-5 for a, b in zip(separate, common, strict=True))
    for parts in (("head",), ("B",)):
        alone, all_of_it = (train(share, fused_gradients, parts=parts)[0] for share in (SHARE, None))
        for a, b in zip(alone, all_of_it, strict=True):
            torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_the_bounds_add_up_to_the_clipping_norm() -> None:
    head, factor = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    groups = split_by_share(torch.optim.SGD([factor, head], lr=1.0), [head], 0.6, 2.0)

    assert [group.max_norm for group in groups] == pytest.approx([1.2, 1.6])
    head.grad_sample = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])  # type: ignore[attr-defined]
    assert groups[0].clip().tolist() == [True, False, False]
    torch.testing.assert_close(head.grad_sample, torch.tensor([[0.72, 0.96], [0.3, 0.4], [0.0, 0.0]]))  # type: ignore[attr-defined]


def test_the_meter_counts_examples_of_which_a_part_was_clipped() -> None:
    meter = ClippingMeter(1e-9, 1.0, 4.0, TorchRandomness(0))
    meter.add(torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([True, False, False, True]))
    meter.release()
    assert meter.statistics.clipped_share == pytest.approx(0.5, abs=1e-6)

"""Losses of a language model on random sequences of different lengths."""

from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.privacy.grad_sample_modes import per_example_gradients
from fedsvd.training.per_example_gradients import fused_gradients

LENGTHS = (3, 9, 6, 2)


def losses(model: nn.Module, positions: Any) -> Tensor:
    """Return a loss for each of the sequences at the given positions."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(200, 30000, (length,), generator=generator) for length in LENGTHS]
    ids = torch.stack([nn.functional.pad(rows[i], (0, max(LENGTHS) - LENGTHS[i])) for i in positions])
    mask = (ids != 0).long()
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    return (torch.logsumexp(logits, -1) * mask).sum(1) / 10


def assert_fused_gradients_are_those_of_single_examples(model: nn.Module, tolerance: float) -> None:
    """Compare the fused gradients of all sequences with those of each by itself, relative to their norms."""
    fused = per_example_gradients(model, losses, range(len(LENGTHS)), fused_gradients)

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert fused.keys() == trained.keys()
    for position in range(len(LENGTHS)):
        alone = torch.autograd.grad(losses(model, [position]).sum(), list(trained.values()))
        whole = torch.cat([gradient.flatten() for gradient in alone])
        difference = torch.cat([fused[name][position].flatten() for name in trained]) - whole
        assert difference.norm() <= tolerance * whole.norm()

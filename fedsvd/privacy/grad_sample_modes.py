"""Contexts in which backward passes compute per-example gradients (``grad_sample_mode``)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from opacus import GradSampleModule
from torch import Tensor, nn

from fedsvd.compat.opacus import delete_attributes
from fedsvd.errors import PrivacyError

# Maps a model to a context in which backward passes set `parameter.grad_sample`, of shape (batch, *parameter).
GradSampleMode = Callable[[nn.Module], AbstractContextManager[nn.Module]]
# Maps a model and the positions of examples to each example's loss, of shape (batch,).
LossFunction = Callable[[nn.Module, Sequence[int]], Tensor]


@contextmanager
def opacus_hooks(model: nn.Module) -> Iterator[nn.Module]:
    """Compute per-example gradients with Opacus' hooks: every backward pass sets ``parameter.grad_sample``.

    Raises:
        PrivacyError: Opacus does not support a trained layer.
    """
    unsupported = GradSampleModule.validate(model)
    if unsupported:
        raise PrivacyError(f"Opacus cannot compute per-example gradients of these trained layers: {unsupported}.")
    wrapped = GradSampleModule(model, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # The input of the lowest adapted layer comes from frozen layers and needs no gradient. torch warns about
            # this in every step.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            yield wrapped
    finally:
        wrapped.remove_hooks()


@contextmanager
def compute_grad_samples(model: nn.Module, grad_sample_mode: GradSampleMode) -> Iterator[nn.Module]:
    """Enter a grad sample mode, and on exit remove all gradients and the attributes that Opacus sets."""
    try:
        with grad_sample_mode(model) as wrapped:
            yield wrapped
    finally:
        for parameter in model.parameters():
            parameter.grad = None
            delete_attributes(parameter)


def per_example_gradients(
    model: nn.Module, losses: LossFunction, positions: Sequence[int], grad_sample_mode: GradSampleMode | None = None
) -> dict[str, Tensor]:
    """Return the unclipped per-example gradients, of shape (batch, *parameter), by name of the trained parameter."""
    with compute_grad_samples(model, grad_sample_mode or opacus_hooks) as wrapped:
        model.train()
        losses(wrapped, positions).sum().backward()  # type: ignore[no-untyped-call]
        return {name: p.grad_sample for name, p in model.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]


def check_per_example_gradients(parameters: Sequence[nn.Parameter], num_examples: int) -> None:
    """Check that a backward pass has set the gradients of each example, shape (num_examples, *parameter).

    Raises:
        PrivacyError: It has not, for one of the parameters.
    """
    for parameter in parameters:
        sample = getattr(parameter, "grad_sample", None)
        if sample is None or sample.shape != (num_examples, *parameter.shape):
            actual = "none" if sample is None else f"shape {tuple(sample.shape)}"
            raise PrivacyError(
                f"a batch of {num_examples} examples gave per-example gradients of {actual} for a parameter of shape "
                f"{tuple(parameter.shape)}: this model does not keep examples apart in its first dimension, or does "
                "not use all trained parameters. Use another model."
            )

"""DP-SGD through Opacus (Abadi et al. 2016, arXiv 1607.00133, Algorithm 1): the only room that knows its engine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedsvd.errors import PrivacyError
from fedsvd.privacy.canaries import Canaries
from fedsvd.privacy.clipping_statistics import GRADIENT_NOISE_FACTOR, ClippingMeter, ClippingStatistics
from fedsvd.privacy.randomness import Randomness

logger = logging.getLogger(__name__)

# From a model to a context in which backward passes leave `parameter.grad_sample`, shape (batch, *parameter).
GradSampleMode = Callable[[nn.Module], AbstractContextManager[nn.Module]]
LossFunction = Callable[[nn.Module, Sequence[int]], Tensor]


@dataclass(frozen=True)
class DPSGD:
    """One round's mechanism.

    Attributes:
        noise_multiplier: σ; 0 (no privacy) is for tests.
        max_grad_norm: L2 bound of each example's gradient over all trained parameters together.
        sample_rate: Chance of each example to be in a batch.
        steps: Optimiser steps, each with noise.
        expected_batch_size: What the noised sum is divided by; None: ``sample_rate · num_examples``.
        physical_batch_size: Examples whose gradients are held at once; changes no result.
        statistics: Also measure how many gradients are clipped; see
            `fedsvd.privacy.clipping_statistics` for what pays for it.
    """

    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    steps: int
    physical_batch_size: int = 128
    expected_batch_size: float | None = None
    statistics: bool = False


def train_dp_sgd(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: LossFunction,
    num_examples: int,
    plan: DPSGD,
    randomness: Randomness,
    per_example: GradSampleMode | None = None,
    canaries: Canaries | None = None,
) -> ClippingStatistics | None:
    """Take exactly ``plan.steps`` noisy steps; an empty batch takes one too, made of noise alone.

    Each step releases ``(Σ clip(gᵢ) + N(0, σ² C²)) / (sample_rate · num_examples)``: the divisor is the expected batch
    size, because the actual one is private.

    Args:
        model: Parameters with ``requires_grad`` are trained and clipped together.
        optimizer: Over exactly these parameters.
        losses: From the model and the examples' positions to each example's loss, shape (batch,).
        num_examples: Size of the data set that positions index.
        plan: The mechanism.
        randomness: Draws the batches (secret, or amplification by sampling does not hold) and the noise.
        per_example: How per-example gradients are formed; by default by `opacus_hooks`.
        canaries: An audit's; sampled, clipped, summed and noised with the examples. ``sample_rate`` and the divisor
            stay those of the data.

    Returns:
        What ``plan.statistics`` asks for.

    Raises:
        PrivacyError: A trained layer whose per-example gradients cannot be formed.
    """
    divisor = plan.expected_batch_size or plan.sample_rate * num_examples
    meter = ClippingMeter(plan.noise_multiplier, plan.max_grad_norm, divisor, randomness) if plan.statistics else None
    with _forming(model, per_example or opacus_hooks) as wrapped:
        private = _NoisyOptimizer(
            optimizer,
            randomness,
            meter,
            noise_multiplier=plan.noise_multiplier * (GRADIENT_NOISE_FACTOR if meter else 1.0),
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=divisor,
            loss_reduction="mean",
        )
        model.train()
        total = num_examples + (canaries.count if canaries else 0)
        for batch in randomness.batches(total, plan.sample_rate, plan.steps):
            _noisy_step(wrapped, private, _Examples(losses, num_examples, canaries), batch, plan.physical_batch_size)
            if meter:
                meter.release()
    return meter.statistics if meter else None


def per_example_gradients(
    model: nn.Module, losses: LossFunction, positions: Sequence[int], per_example: GradSampleMode | None = None
) -> dict[str, Tensor]:
    """Return each trained parameter's gradient for each example, shape (batch, *parameter), unclipped."""
    with _forming(model, per_example or opacus_hooks) as wrapped:
        model.train()
        losses(wrapped, positions).sum().backward()  # type: ignore[no-untyped-call]
        return {name: p.grad_sample for name, p in model.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]


class _NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser, its noise drawn from `Randomness`."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, randomness: Randomness, meter: ClippingMeter | None, **options: Any
    ) -> None:
        super().__init__(optimizer, **options)
        self._randomness = randomness
        self._meter = meter

    def clip_and_accumulate(self) -> None:
        """Clip and sum as Opacus does; an example whose gradient is not finite counts as nothing.

        Such a gradient has no norm to be clipped to: it would turn the whole sum into nan, or an error would tell of a
        single example. As zero, it keeps the sensitivity.
        """
        samples = [parameter.grad_sample for parameter in self.params]
        each = torch.stack([torch.linalg.vector_norm(sample.flatten(1), dim=1) for sample in samples])
        norms = torch.linalg.vector_norm(each, dim=0)
        lost = ~torch.isfinite(norms)
        if lost.any():
            for sample in samples:
                sample[lost] = 0.0
            logger.warning("%d examples had gradients that are not finite; they count as nothing.", int(lost.sum()))
        if self._meter:
            self._meter.add(norms.masked_fill(lost, 0.0))
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Set each gradient to the clipped sum with noise of standard deviation σ · max_grad_norm."""
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            clipped = parameter.summed_grad
            noised = clipped + self._randomness.normal(clipped, std) if std else clipped
            parameter.grad = noised.view_as(parameter)


@dataclass(frozen=True)
class _Examples:
    """What positions stand for: the first ``num_examples`` for the data, the rest for an audit's canaries."""

    losses: LossFunction
    num_examples: int
    canaries: Canaries | None


def _noisy_step(
    model: nn.Module, optimizer: DPOptimizer, examples: _Examples, batch: list[int], physical_batch_size: int
) -> None:
    chunks = [batch[start : start + physical_batch_size] for start in range(0, len(batch), physical_batch_size)]
    for chunk in chunks[:-1]:
        optimizer.signal_skip_step(do_skip=True)
        _backward(model, optimizer, examples, chunk)
    optimizer.signal_skip_step(do_skip=False)
    _backward(model, optimizer, examples, chunks[-1] if chunks else [])


def _backward(model: nn.Module, optimizer: DPOptimizer, examples: _Examples, chunk: list[int]) -> None:
    optimizer.zero_grad(set_to_none=True)
    positions = [i for i in chunk if i < examples.num_examples]
    if positions:
        examples.losses(model, positions).sum().backward()  # type: ignore[no-untyped-call]
        _check_per_example_gradients(optimizer.params, len(positions))
    else:
        for parameter in optimizer.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
    if examples.canaries and positions:
        examples.canaries.watch([p.grad_sample for p in optimizer.params], optimizer.max_grad_norm)
    if examples.canaries and len(positions) < len(chunk):
        numbers = [i - examples.num_examples for i in chunk if i >= examples.num_examples]
        for parameter, rows in zip(
            optimizer.params, examples.canaries.gradients(numbers, optimizer.params), strict=True
        ):
            parameter.grad_sample = torch.cat([parameter.grad_sample, rows])
    optimizer.step()


def _check_per_example_gradients(parameters: Sequence[nn.Parameter], num_examples: int) -> None:
    for parameter in parameters:
        sample = getattr(parameter, "grad_sample", None)
        if sample is None or sample.shape != (num_examples, *parameter.shape):
            found = "none" if sample is None else f"shape {tuple(sample.shape)}"
            raise PrivacyError(
                f"a batch of {num_examples} examples gave per-example gradients of {found} for a parameter of shape "
                f"{tuple(parameter.shape)}: this model does not keep examples apart in its first dimension, or does "
                "not use all that is trained."
            )


@contextmanager
def opacus_hooks(model: nn.Module) -> Iterator[nn.Module]:
    """Let every backward pass leave per-example gradients in ``parameter.grad_sample``, by Opacus' hooks.

    Raises:
        PrivacyError: A trained layer that Opacus has no rule for.
    """
    unsupported = GradSampleModule.validate(model)
    if unsupported:
        raise PrivacyError(f"these trained layers have no per-example gradients under Opacus: {unsupported}.")
    wrapped = GradSampleModule(model, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # The lowest adapted layer's input comes from frozen layers and needs no gradient; torch says so each time.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            yield wrapped
    finally:
        wrapped.remove_hooks()


@contextmanager
def _forming(model: nn.Module, per_example: GradSampleMode) -> Iterator[nn.Module]:
    try:
        with per_example(model) as wrapped:
            yield wrapped
    finally:
        for parameter in model.parameters():
            parameter.grad = None
            _forget(parameter, "grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample")


def _forget(holder: Any, *names: str) -> None:
    for name in names:
        if hasattr(holder, name):
            delattr(holder, name)

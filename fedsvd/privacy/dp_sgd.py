"""DP-SGD with Opacus (Abadi et al. 2016, arXiv 1607.00133, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fedsvd.privacy.canaries import Canaries
from fedsvd.privacy.clipping_groups import split_by_share
from fedsvd.privacy.clipping_statistics import GRADIENT_NOISE_FACTOR, ClippingMeter, ClippingStatistics
from fedsvd.privacy.grad_sample_modes import (
    GradSampleMode,
    LossFunction,
    check_per_example_gradients,
    compute_grad_samples,
    opacus_hooks,
)
from fedsvd.privacy.gradient_maps import GradientMap
from fedsvd.privacy.noise_ahead import NoiseAhead
from fedsvd.privacy.noisy_optimizer import NoisyOptimizer
from fedsvd.privacy.physical_batches import BatchLimit, preparation, run_physical_batches, with_following
from fedsvd.privacy.randomness import Randomness


@dataclass(frozen=True)
class DPSGD:
    """The DP-SGD mechanism of one round.

    Attributes:
        noise_multiplier: σ. The value 0 (no privacy) is for tests.
        max_grad_norm: C, the bound on the L2 norm of each example's gradient over all trained parameters jointly.
        sample_rate: Probability that an example is in a batch.
        steps: Number of optimizer steps, each with noise.
        physical_batch_size: Number of examples whose gradients are in memory at once, or a limit that is found by
            trying. It does not affect the result.
        expected_batch_size: Divisor of the noised sum. Default: ``sample_rate · num_examples``.
        statistics: Whether to release clipping statistics too; `fedsvd.privacy.clipping_statistics` describes their
            cost.
        head_clipping_share: c in (0, 1): clip the head's gradient to ``c C``, and that of the factors to
            ``√(1-c²) C``, where both are trained; None: clip both together. See `fedsvd.privacy.clipping_groups`.
    """

    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    steps: int
    physical_batch_size: int | BatchLimit = 128
    expected_batch_size: float | None = None
    statistics: bool = False
    head_clipping_share: float | None = None


def train_dp_sgd(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: LossFunction,
    num_examples: int,
    mechanism: DPSGD,
    randomness: Randomness,
    grad_sample_mode: GradSampleMode | None = None,
    canaries: Canaries | None = None,
    head: Sequence[nn.Parameter] = (),
    maps: Sequence[GradientMap] = (),
    widths: Sequence[int] = (),
) -> ClippingStatistics | None:
    """Take exactly ``mechanism.steps`` noisy steps; an empty batch also takes a step, which consists of noise alone.

    Each step releases ``(Σ clip(gᵢ) + N(0, σ² C²)) / (sample_rate · num_examples)``. The default divisor is the
    expected batch size, because the actual batch size is private.

    That an example changes the sum by at most C requires that the gradient of each other example does not depend on it.
    Examples of different ``widths`` are therefore computed in different physical batches, so that how an example is
    padded depends on its own length alone. Padding is masked, but not for every model: where a state overflows at
    padding, for example through factors that a server has made for this, its product with the mask is not a number.

    Args:
        model: The model. Parameters with ``requires_grad`` are trained.
        optimizer: Optimizer over exactly these parameters.
        losses: Function from the model and the positions of examples to each example's loss, shape (batch,).
        num_examples: Size of the data set that positions index.
        mechanism: The DP-SGD mechanism.
        randomness: Source of the batches and the noise. Batches must be secret; otherwise amplification by sampling
            does not hold.
        grad_sample_mode: How per-example gradients are computed. Default: `opacus_hooks`.
        canaries: Canaries of an audit, which are sampled, clipped, summed and noised together with the examples.
            ``sample_rate`` and the divisor remain those of the real data.
        head: The trained parameters of the head, for ``mechanism.head_clipping_share``.
        maps: Maps of the examples' gradients before clipping, and of the noised sum; they must not depend on the data.
        widths: Number of tokens of each example with padding.

    Returns:
        The clipping statistics if ``mechanism.statistics``, else None.

    Raises:
        PrivacyError: Per-example gradients of a trained layer cannot be computed.
    """
    size = mechanism.physical_batch_size
    limit = size if isinstance(size, BatchLimit) else BatchLimit(size)
    divisor = mechanism.expected_batch_size or mechanism.sample_rate * num_examples
    meter = None
    if mechanism.statistics:
        meter = ClippingMeter(mechanism.noise_multiplier, mechanism.max_grad_norm, divisor, randomness)
    with (
        compute_grad_samples(model, grad_sample_mode or opacus_hooks) as wrapped,
        NoiseAhead(randomness) as noise,
    ):
        private = _noisy_optimizer(optimizer, mechanism, divisor, noise, meter, head, maps)
        model.train()
        total = num_examples + (canaries.count if canaries else 0)
        examples = _DataAndCanaries(losses, num_examples, canaries)
        batches = randomness.batches(total, mechanism.sample_rate, mechanism.steps)
        for batch, following in with_following(batches):
            private.draw_noise()
            _noisy_step(wrapped, private, examples, batch, following, limit, widths)
            if meter:
                meter.release()
    return meter.statistics if meter else None


def _noisy_optimizer(
    optimizer: torch.optim.Optimizer,
    mechanism: DPSGD,
    divisor: float,
    noise: NoiseAhead,
    meter: ClippingMeter | None,
    head: Sequence[nn.Parameter],
    maps: Sequence[GradientMap],
) -> NoisyOptimizer:
    return NoisyOptimizer(
        optimizer,
        noise,
        meter,
        split_by_share(optimizer, head, mechanism.head_clipping_share, mechanism.max_grad_norm),
        maps,
        noise_multiplier=mechanism.noise_multiplier * (GRADIENT_NOISE_FACTOR if meter else 1.0),
        max_grad_norm=mechanism.max_grad_norm,
        expected_batch_size=divisor,
        loss_reduction="mean",
    )


@dataclass(frozen=True)
class _DataAndCanaries:
    """The meaning of positions: the first ``num_examples`` are real examples, the rest are canaries of an audit."""

    losses: LossFunction
    num_examples: int
    canaries: Canaries | None

    def prepare(self, part: Sequence[int]) -> None:
        """Let the loss function collate the real examples of a physical batch ahead, if it can."""
        prepare, positions = preparation(self.losses), self.real(part)
        if prepare and positions:
            prepare(positions)

    def real(self, part: Sequence[int]) -> list[int]:
        """Return the positions of the real examples."""
        return [position for position in part if position < self.num_examples]


def _noisy_step(
    model: nn.Module,
    optimizer: NoisyOptimizer,
    examples: _DataAndCanaries,
    batch: Sequence[int],
    following: Sequence[int],
    limit: BatchLimit,
    widths: Sequence[int],
) -> None:
    def release() -> None:
        for parameter in optimizer.params:
            parameter.grad_sample = None

    def accumulate(part: list[int], is_last: bool) -> None:
        if examples.canaries:
            _add_canaries(optimizer, examples.canaries, examples.num_examples, part)
        optimizer.signal_skip_step(do_skip=not is_last)
        optimizer.step()

    compute = partial(_backward, model, optimizer, examples)
    prepare = examples.prepare
    run_physical_batches(batch, limit, widths, compute, release, accumulate, prepare, following, separate=True)


def _backward(model: nn.Module, optimizer: NoisyOptimizer, examples: _DataAndCanaries, part: list[int]) -> None:
    """Compute the gradients of the real examples of a physical batch; a failed call leaves nothing behind."""
    optimizer.zero_grad(set_to_none=True)
    positions = examples.real(part)
    if positions:
        examples.losses(model, positions).sum().backward()  # type: ignore[no-untyped-call]
        check_per_example_gradients(optimizer.params, len(positions))
        optimizer.map_samples()
    else:
        for parameter in optimizer.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))


def _add_canaries(optimizer: NoisyOptimizer, canaries: Canaries, num_examples: int, part: Sequence[int]) -> None:
    indices = [i - num_examples for i in part if i >= num_examples]
    if len(indices) < len(part):
        if optimizer.groups:
            optimizer.clip_groups()
        canaries.observe_data([p.grad_sample for p in optimizer.params], optimizer.max_grad_norm)
    if indices:
        for parameter, rows in zip(optimizer.params, canaries.gradients(indices, optimizer.params), strict=True):
            parameter.grad_sample = torch.cat([parameter.grad_sample, rows])

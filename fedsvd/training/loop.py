"""Local training without privacy, and optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from fedsvd.config import TrainConfig
from fedsvd.errors import DivergedError
from fedsvd.privacy.gradient_maps import GradientMap, map_gradients, map_noised_gradients
from fedsvd.privacy.physical_batches import BatchLimit, preparation, run_physical_batches, with_following
from fedsvd.training.schedule import learning_rate

Batch = dict[str, Tensor]


class StateCache(Protocol):
    """A cache of what frozen layers compute: `fedsvd.training.prefix_cache` or `fedsvd.training.feature_cache`."""

    def reuse_states(
        self, model: nn.Module, inputs: Batch, on_cpu: Batch | None = None
    ) -> AbstractContextManager[None]:
        """Reuse cached states in forward passes of ``model`` on ``inputs``, inside the context.

        Args:
            model: The model.
            inputs: The inputs of the forward passes.
            on_cpu: The same inputs on the CPU, if ``inputs`` are elsewhere: texts are recognized by them, so that
                nothing waits for the device.
        """


def make_optimizer(
    parameters: Sequence[nn.Parameter],
    config: TrainConfig,
    server_round: int,
    head: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Build the client's optimizer for a round from the ``train`` configuration group.

    Args:
        parameters: All trained parameters.
        config: The ``train`` configuration group.
        server_round: 1-based.
        head: Those of the parameters that belong to the head and have its learning rate.
    """
    head_ids = {id(parameter) for parameter in head}
    factors = [parameter for parameter in parameters if id(parameter) not in head_ids]
    groups = [
        {"params": params, "lr": learning_rate(config, server_round, of_head=of_head)}
        for params, of_head in ((factors, False), (list(head), True))
        if params
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)


def train_plain(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[nn.Module, Sequence[int]], Tensor],
    batches: Iterable[list[int]],
    clip_grad_norm: float | None = None,
    maps: Sequence[GradientMap] = (),
    limit: BatchLimit | None = None,
    lengths: Sequence[int] = (),
) -> float:
    """Train without differential privacy: take one optimizer step per batch and skip empty batches.

    Args:
        model: The model; its parameters with ``requires_grad`` are trained.
        optimizer: An optimizer over these parameters.
        losses: Function from the model and example indices to the loss of each example, shape (batch,).
        batches: Example indices of each batch.
        clip_grad_norm: Clip the gradient of a batch, over all trained parameters, to this norm.
        maps: Maps of the gradient before and after it is clipped.
        limit: Limit of the number of examples in memory at once; None: all of a batch.
        lengths: Number of tokens of each example, by which large batches are split (see `split_batch`).

    Returns:
        The mean of the batch losses; NaN if every batch was empty.

    Raises:
        DivergedError: A batch loss is not finite.
    """
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    means: list[float] = []
    for positions, following in with_following(batch for batch in batches if batch):
        optimizer.zero_grad(set_to_none=True)
        sizes = limit or BatchLimit(max(len(positions), len(following)))
        means.append(_mean_gradients(model, losses, trained, positions, following, sizes, lengths))
        if maps:
            map_gradients(maps, trained)
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, clip_grad_norm)
        if maps:
            map_noised_gradients(maps, trained)
        optimizer.step()
        if not math.isfinite(means[-1]):
            raise DivergedError(
                f"the loss of a batch is {means[-1]}: training has diverged. Lower train.learning_rate, or look for "
                "examples that the model cannot process."
            )
    return sum(means) / len(means) if means else float("nan")


def _mean_gradients(
    model: nn.Module,
    losses: Callable[[nn.Module, Sequence[int]], Tensor],
    trained: Sequence[nn.Parameter],
    positions: Sequence[int],
    following: Sequence[int],
    limit: BatchLimit,
    lengths: Sequence[int],
) -> float:
    """Set the gradient of the mean loss of a batch, and return the loss."""
    results: list[tuple[Tensor, tuple[Tensor, ...]]] = []
    parts: list[Tensor] = []

    def compute(part: list[int]) -> None:
        # The mean over the batch, also if it is split.
        loss = losses(model, part).mean() * (len(part) / len(positions))
        # Not added to the parameters' gradients yet: a backward pass that runs out of memory leaves a part of them.
        results.append((loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)))

    def accumulate(part: list[int], is_last: bool) -> None:
        loss, gradients = results.pop()
        parts.append(loss.double())
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    prepare = preparation(losses)
    run_physical_batches(positions, limit, lengths, compute, lambda: None, accumulate, prepare, following)
    # Read once per step: every read waits for the GPU.
    return torch.stack(parts).sum().item()


def model_inputs(batch: Batch) -> Batch:
    """Return the inputs of a model's forward pass: the batch without its labels."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move all tensors of a batch to a device."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}

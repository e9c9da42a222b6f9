"""Local training without privacy, optimizers, and evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsvd.config import TrainConfig
from fedsvd.errors import DivergedError
from fedsvd.privacy.gradient_maps import GradientMap, map_gradients, map_noised_gradients
from fedsvd.privacy.physical_batches import split_batch
from fedsvd.training.causal_lm import score_answers
from fedsvd.training.schedule import learning_rate

Batch = dict[str, Tensor]


class StateCache(Protocol):
    """A cache of what frozen layers compute: `fedsvd.training.prefix_cache` or `fedsvd.training.feature_cache`."""

    def reuse_states(self, model: nn.Module, inputs: Batch) -> AbstractContextManager[None]:
        """Reuse cached states in forward passes of ``model`` on ``inputs``, inside the context."""


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model.

    Attributes:
        loss: Mean cross-entropy per example; for a language model per token, so that its exponential is the perplexity.
        accuracy: Fraction of examples classified correctly; for a language model, fraction of answers that greedy
            decoding reproduces token for token.
        num_examples: Number of examples evaluated.
        seconds: Wall-clock time of the evaluation.
    """

    loss: float
    accuracy: float
    num_examples: int
    seconds: float


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


def example_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy of each example, shape (batch,), float32.

    For a language model it is the mean over the tokens of the answer.
    """
    labels = batch["labels"]
    if labels.dim() == 2:
        return score_answers(model, model_inputs(batch), labels).means
    logits = model(**model_inputs(batch)).logits
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def train_plain(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[nn.Module, Sequence[int]], Tensor],
    batches: Iterable[list[int]],
    clip_grad_norm: float | None = None,
    maps: Sequence[GradientMap] = (),
    physical_batch_size: int | None = None,
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
        physical_batch_size: Largest number of examples in memory at once; None: all of a batch.
        lengths: Number of tokens of each example, by which large batches are split (see `split_batch`).

    Returns:
        The mean of the batch losses; NaN if every batch was empty.

    Raises:
        DivergedError: A batch loss is not finite.
    """
    model.train()
    means: list[float] = []
    for positions in batches:
        if not positions:
            continue
        optimizer.zero_grad(set_to_none=True)
        means.append(0.0)
        for part in split_batch(positions, physical_batch_size or len(positions), lengths):
            # The mean over the batch, also if it is split.
            loss = losses(model, part).mean() * (len(part) / len(positions))
            loss.backward()  # type: ignore[no-untyped-call]
            means[-1] += loss.item()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
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


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], device: torch.device, prefix: StateCache | None = None
) -> Evaluation:
    """Evaluate loss and accuracy over batches.

    Args:
        model: The model.
        batches: Padded batches with ``labels``.
        device: The device of the model.
        prefix: Cache of the model's frozen lower layers, if it has one.
    """
    started = time.perf_counter()
    model.eval()
    total, num_losses, num_correct, num_examples = 0.0, 0, 0, 0
    for cpu_batch in batches:
        batch = to_device(cpu_batch, device)
        with prefix.reuse_states(model, model_inputs(batch)) if prefix is not None else nullcontext():
            losses, correct = _losses_and_correct(model, batch)
        total += losses.double().sum().item()
        num_losses += losses.numel()
        num_correct += int(correct.sum().item())
        num_examples += len(batch["labels"])
    return Evaluation(total / num_losses, num_correct / num_examples, num_examples, time.perf_counter() - started)


def _losses_and_correct(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of each example, or of each answer token, as a flat tensor, and a mask of the correct examples.

    The mask has shape (batch,).
    """
    labels = batch["labels"]
    if labels.dim() == 2:
        answers = score_answers(model, model_inputs(batch), labels)
        within = torch.arange(answers.losses.shape[1], device=labels.device) < answers.counts.unsqueeze(1)
        return answers.losses[within], answers.exact
    logits = model(**model_inputs(batch)).logits.float()
    return functional.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels


def model_inputs(batch: Batch) -> Batch:
    """Return the inputs of a model's forward pass: the batch without its labels."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move all tensors of a batch to a device."""
    return {key: value.to(device) for key, value in batch.items()}

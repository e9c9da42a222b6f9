"""Local optimisation without privacy, the optimisers, and evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsvd.config import TrainConfig
from fedsvd.errors import RunError
from fedsvd.training.causal_lm import read_answers
from fedsvd.training.prefix_cache import PrefixCache

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of ``num_examples`` examples.

    Attributes:
        loss: Mean cross-entropy; of a language model per token, so that its exponential is the perplexity.
        accuracy: Share of right classes; of a language model of answers that greedy decoding gives token for token.
        num_examples: How many.
        seconds: What it took.
    """

    loss: float
    accuracy: float
    num_examples: int
    seconds: float


def make_optimizer(parameters: Sequence[nn.Parameter], config: TrainConfig, server_round: int) -> torch.optim.Optimizer:
    """Build the client's optimiser for one round (1-based) from the ``train`` group."""
    rate = learning_rate(config, server_round)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay)


def learning_rate(config: TrainConfig, server_round: int) -> float:
    """Return the step size of a round (1-based): constant, or falling in a line that would reach 0 after the last."""
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    return config.learning_rate * (1 - (server_round - 1) / config.num_rounds)


def example_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return each example's cross-entropy, shape (batch,), float32; of a language model its answer's mean per token."""
    labels = batch["labels"]
    if labels.dim() == 2:
        return read_answers(model, inputs(batch), labels).means
    logits = model(**inputs(batch)).logits
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def train_plain(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[nn.Module, Sequence[int]], Tensor],
    batches: Iterable[list[int]],
    clip_grad_norm: float | None = None,
) -> float:
    """Take one optimiser step a batch; a batch without examples has no gradient and takes none.

    Args:
        model: Its parameters with ``requires_grad`` are trained.
        optimizer: Over these parameters.
        losses: From the model and the examples' positions to each example's loss, shape (batch,).
        batches: Positions of each batch's examples.
        clip_grad_norm: Largest norm of a batch's gradient over all that is trained.

    Returns:
        The mean of the batches' losses (nan when every batch was empty).

    Raises:
        RunError: A loss that is not finite.
    """
    model.train()
    means: list[float] = []
    for positions in batches:
        if not positions:
            continue
        loss = losses(model, positions).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip_grad_norm)
        optimizer.step()
        means.append(loss.item())
        if not math.isfinite(means[-1]):
            raise RunError(
                f"the loss of a batch is {means[-1]}: training has diverged. Lower train.learning_rate, or look for "
                "examples that the model cannot take."
            )
    return sum(means) / len(means) if means else float("nan")


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], device: torch.device, prefix: PrefixCache | None = None
) -> Evaluation:
    """Measure loss and accuracy over batches; ``prefix`` is the model's cache."""
    started = time.perf_counter()
    model.eval()
    total, tokens, right, count = 0.0, 0, 0, 0
    for cpu_batch in batches:
        batch = to_device(cpu_batch, device)
        with prefix.handing_in(model, inputs(batch)) if prefix is not None else nullcontext():
            losses, hits = _read(model, batch)
        total += losses.double().sum().item()
        tokens += losses.numel()
        right += int(hits.sum().item())
        count += len(batch["labels"])
    return Evaluation(total / tokens, right / count, count, time.perf_counter() - started)


def _read(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the losses of all classes or tokens, flat, and which examples are right, shape (batch,)."""
    labels = batch["labels"]
    if labels.dim() == 2:
        answers = read_answers(model, inputs(batch), labels)
        within = torch.arange(answers.losses.shape[1], device=labels.device) < answers.counts.unsqueeze(1)
        return answers.losses[within], answers.exact
    logits = model(**inputs(batch)).logits.float()
    return functional.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels


def inputs(batch: Batch) -> Batch:
    """Return what a model's forward pass takes of a batch: all but the labels."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors."""
    return {key: value.to(device) for key, value in batch.items()}

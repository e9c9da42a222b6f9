"""Evaluation of a model on a held-out set."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsvd.training.loop import Batch, StateCache, model_inputs, to_device
from fedsvd.training.objectives import Objective


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model.

    Attributes:
        loss: Mean loss per example; for a language model per token, so that its exponential is the perplexity.
        metrics: Metrics by key; see `fedsvd.config.task.TASKS`.
        num_examples: Number of examples evaluated.
        seconds: Wall-clock time of the evaluation.
        predictions: Predictions of each batch, on the CPU.
        labels: Labels of each batch, on the CPU.
    """

    loss: float
    metrics: Mapping[str, float]
    num_examples: int
    seconds: float
    predictions: tuple[Tensor, ...] = ()
    labels: tuple[Tensor, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """Fraction of correct examples; for a language model, of answers that greedy decoding reproduces."""
        return self.metrics.get("accuracy")


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    objective: Objective,
    prefix: StateCache | None = None,
) -> Evaluation:
    """Evaluate loss and metrics over batches.

    Args:
        model: The model.
        batches: Padded batches with ``labels``.
        device: The device of the model.
        objective: The objective of the model's task.
        prefix: Cache of the model's frozen lower layers, if it has one.
    """
    started = time.perf_counter()
    model.eval()
    total, num_losses = 0.0, 0
    predictions, labels = [], []
    for cpu_batch in batches:
        batch = to_device(cpu_batch, device)
        on_cpu = model_inputs(cpu_batch)
        with prefix.reuse_states(model, model_inputs(batch), on_cpu) if prefix is not None else nullcontext():
            outputs = objective.outputs(model, batch)
        total += outputs.losses.double().sum().item()
        num_losses += outputs.losses.numel()
        predictions.append(outputs.predictions.cpu())
        labels.append(outputs.labels.cpu())
    return Evaluation(
        total / num_losses,
        objective.metrics(predictions, labels),
        sum(map(len, labels)),
        time.perf_counter() - started,
        tuple(predictions),
        tuple(labels),
    )

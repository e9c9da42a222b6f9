"""Answers of a causal language model: its logits at the tokens of the answer alone, each example's loss, and hits.

An example is one sequence: a prompt, an answer and an end token, with labels -100 where nothing is learnt, as
transformers has it. The output layer is applied where an answer's next token is predicted and nowhere else: with a
vocabulary of 50,000 the logits of whole prompts would take more memory than the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

IGNORED = -100


@dataclass(frozen=True)
class Answers:
    """What a model makes of the answers in a batch.

    Attributes:
        losses: Cross-entropy of each answer's tokens, shape (batch, answer length), 0 beyond an answer's end.
        counts: Tokens of each answer, shape (batch,).
        exact: Whether each token is the likeliest one, so that greedy decoding gives the answer, shape (batch,).
    """

    losses: Tensor
    counts: Tensor
    exact: Tensor

    @property
    def means(self) -> Tensor:
        """Each example's mean cross-entropy per token, shape (batch,)."""
        return self.losses.sum(1) / self.counts


def read_answers(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Answers:
    """Run a model over a batch.

    Args:
        model: A causal language model, or a wrapper around one.
        inputs: What its forward pass takes.
        labels: (batch, length), -100 where nothing is learnt; each row with one token or more to learn after its first.
    """
    targets = labels[:, 1:]
    learnt = targets != IGNORED
    counts = learnt.sum(1)
    # The positions of each answer, in order, before all others.
    positions = learnt.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    with _reading_at(model, positions):
        logits = model(**inputs).logits.float()
    chosen = targets.gather(1, positions)
    losses = functional.cross_entropy(logits.transpose(1, 2), chosen, ignore_index=IGNORED, reduction="none")
    exact = ((logits.argmax(-1) == chosen) | (chosen == IGNORED)).all(1)
    return Answers(losses, counts, exact)


@contextmanager
def _reading_at(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within, the output layer sees the states at these positions alone, shape (batch, positions)."""
    output = next(m for m in model.modules() if isinstance(m, PreTrainedModel)).get_output_embeddings()  # type: ignore[no-untyped-call]

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0]
        index = positions.unsqueeze(-1).expand(-1, -1, states.shape[-1])
        return (torch.gather(states, 1, index), *args[1:])

    with output.register_forward_pre_hook(gather, prepend=True):
        yield

"""The output layer of a language model at chosen positions, in chunks where the vocabulary is large.

The logits of n positions over a vocabulary of V are n V numbers, and the loss and its gradient need several copies. At
16 × 512 positions and V = 128,000, one copy takes 4 GB. Above `MAX_LOGITS` numbers, the logits are computed for a few
positions at a time, reduced to losses, and computed again in the backward pass, so that only one chunk is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from fedsvd.data.instructions import IGNORED

# 256 MiB of float32.
MAX_LOGITS = 2**26

# Whether the logits of a model are the values of its output layer, without a further function.
_ENDS_IN_OUTPUT_LAYER: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def score_tokens(
    model: nn.Module, inputs: dict[str, Tensor], positions: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss of chosen tokens, and whether each is the most likely one.

    Args:
        model: A causal language model, or a wrapper around one.
        inputs: Keyword arguments of its forward pass.
        positions: The positions that predict the tokens, shape (batch, tokens).
        chosen: The tokens, shape (batch, tokens); -100 for none.

    Returns:
        Cross-entropies, float32, 0 for no token; and a mask, False for no token; both of shape (batch, tokens).
    """
    output = _output_layer(model)
    if positions.numel() * output.weight.shape[0] > MAX_LOGITS and _can_split(model, output, inputs, positions):
        with _gather_at(output, positions), _skip(output):
            states = model(**inputs).logits
        return _score_in_chunks(output, states, chosen)
    with _gather_at(output, positions):
        return _score(model(**inputs).logits, chosen)


def _score(logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    losses = functional.cross_entropy(logits.transpose(1, 2), chosen, ignore_index=IGNORED, reduction="none")
    return losses, logits.argmax(-1) == chosen


def _score_in_chunks(output: nn.Module, states: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the output layer to ``states``, shape (batch, tokens, d), a few tokens of all examples at a time."""
    size = max(1, MAX_LOGITS // (len(states) * int(output.get_parameter("weight").shape[0])))

    def score(states: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return _score(output(states), chosen)

    parts = [
        checkpoint(score, *part, use_reentrant=False)
        for part in zip(
            torch.split(states, size, dim=1), torch.split(chosen.to(states.device), size, dim=1), strict=True
        )
    ]
    losses, correct = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
    return losses, correct


@torch.no_grad()
def _can_split(model: nn.Module, output: nn.Module, inputs: dict[str, Tensor], positions: Tensor) -> bool:
    """Return whether the output layer can be applied after the model, to a part of the positions at a time.

    Some architectures scale or bound its values afterwards. An adapted output layer stores per-example gradients for
    each call, and one that accelerate places on a device has a forward pass of its own.
    """
    if any(parameter.requires_grad for parameter in output.parameters()) or "forward" in vars(output):
        return False
    if model not in _ENDS_IN_OUTPUT_LAYER:
        returned: list[Tensor] = []
        # All examples, since layers may return states that are cached for this batch; one position of each, as in the
        # smallest chunk.
        with (
            _gather_at(output, positions[:, :1]),
            output.register_forward_hook(lambda module, args, value: returned.append(value)),
        ):
            logits = model(**inputs).logits
        _ENDS_IN_OUTPUT_LAYER[model] = len(returned) == 1 and logits.data_ptr() == returned[0].data_ptr()
    return _ENDS_IN_OUTPUT_LAYER[model]


def _output_layer(model: nn.Module) -> Any:
    return next(m for m in model.modules() if isinstance(m, PreTrainedModel)).get_output_embeddings()  # type: ignore[no-untyped-call]


@contextmanager
def _skip(output: nn.Module) -> Iterator[None]:
    """Let the output layer return its input, inside the context."""
    output.forward = lambda states: states
    try:
        yield
    finally:
        del output.forward


@contextmanager
def _gather_at(output: nn.Module, positions: Tensor) -> Iterator[None]:
    """Apply the output layer only to the states at ``positions``, shape (batch, positions), inside the context."""

    def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0]
        index = positions.to(states.device).unsqueeze(-1).expand(-1, -1, states.shape[-1])
        return (torch.gather(states, 1, index), *args[1:])

    with output.register_forward_pre_hook(gather, prepend=True):
        yield

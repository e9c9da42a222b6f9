"""A classifier that reads one token needs no other token of its last layer once attention has mixed them.

BERT and its kin classify by the first token. In the last layer keys and values are needed of all tokens, but what comes
after attention (its output projection and the feed-forward part, three quarters of a layer's work) of the first alone.
So the last layer goes on with that one. Outputs and gradients are the same; an architecture that this does not fit is
found out by comparing one forward pass with and without, and computes all tokens as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_TOLERANCE = 1e-4


def use_first_token_only(model: nn.Module) -> bool:
    """Let the last layer of an encoder go on with the first token after attention, where its classifier reads no other.

    Args:
        model: A sequence classifier of transformers, wrapped by PEFT or not. Its hidden states after the last layer
            then have one position.

    Returns:
        Whether that could be done.
    """
    mixed = _after_attention(model)
    if mixed is None:
        return False
    expected = _logits(model)
    hook = mixed.register_forward_pre_hook(_first_token, with_kwargs=True)
    found = _logits(model)
    scale = expected.abs().max().clamp(min=1e-6)
    if found.shape == expected.shape and bool((found - expected).abs().max() <= _TOLERANCE * scale):
        return True
    hook.remove()
    return False


def _after_attention(model: nn.Module) -> nn.Module | None:
    """Return what projects the last layer's attention and adds that to its input: ``attention.output`` in BERT."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    layers: list[Any] = [stack[-1] for stack in stacks if hasattr(getattr(stack[-1], "attention", None), "output")]
    found = layers[0].attention.output if len(layers) == 1 else None
    return found if isinstance(found, nn.Module) else None


def _first_token(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return tuple(map(_first, args)), {name: _first(value) for name, value in kwargs.items()}


def _first(value: Any) -> Any:
    return value[:, :1] if isinstance(value, Tensor) and value.dim() == 3 else value


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    """Classify two made-up texts, the second shorter than the first."""
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = (torch.arange(1, 17, device=device) % vocabulary).view(2, 8)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    was_training = model.training
    model.eval()
    logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    model.train(was_training)
    return logits

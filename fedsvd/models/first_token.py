"""An optimization of the last layer for encoders that classify by the first token.

BERT-like models classify by the first token. The last layer's attention needs the keys and values of all tokens, but
the operations after attention (the output projection and the feed-forward part, three quarters of a layer's
computation) are needed for the first token only. With the optimization, the last layer continues with that token.
Outputs and gradients are the same. Unsuitable architectures are detected by comparing one forward pass with and without
the optimization, and are left unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_TOLERANCE = 1e-4


def use_first_token_only(model: nn.Module) -> bool:
    """Restrict the last encoder layer to the first token after attention, if the classifier uses no other token.

    Args:
        model: A sequence classifier of transformers, with or without PEFT layers. If the optimization is applied, its
            hidden states after the last layer have one position.

    Returns:
        Whether the optimization was applied.
    """
    attention_output = _last_attention_output(model)
    if attention_output is None:
        return False
    expected = _probe_logits(model)
    hook = attention_output.register_forward_pre_hook(_select_first_token, with_kwargs=True)
    actual = _probe_logits(model)
    scale = expected.abs().max().clamp(min=1e-6)
    if actual.shape == expected.shape and bool((actual - expected).abs().max() <= _TOLERANCE * scale):
        return True
    hook.remove()
    return False


def _last_attention_output(model: nn.Module) -> nn.Module | None:
    """Return the module that projects the last layer's attention and adds the residual: BERT's ``attention.output``."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    layers: list[Any] = [stack[-1] for stack in stacks if hasattr(getattr(stack[-1], "attention", None), "output")]
    output = layers[0].attention.output if len(layers) == 1 else None
    return output if isinstance(output, nn.Module) else None


def _select_first_token(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return tuple(map(_first_position, args)), {name: _first_position(value) for name, value in kwargs.items()}


def _first_position(value: Any) -> Any:
    return value[:, :1] if isinstance(value, Tensor) and value.dim() == 3 else value


@torch.no_grad()
def _probe_logits(model: nn.Module) -> Tensor:
    """Return the logits of two artificial texts, the second shorter than the first."""
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

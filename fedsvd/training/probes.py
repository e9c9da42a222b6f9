"""Checks of a model by forward passes on a few made-up tokens, before a run trains it.

Per-example gradients need a layer's input to have the examples of the batch as its first dimension. Some architectures
pass tokens in another order: XLNet puts the position first, OPT's feed-forward part and routed experts take the tokens
of all examples as one list. A batch with as many examples as positions would hide this, so it is checked in advance.

No prediction may depend on padding: XLNet's classifier reads the last position, padded or not. A language model must
not read the tokens that it predicts, which encoders do, and must keep packed sequences apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from fedsvd.errors import ConfigError, ModelError, PrivacyError
from fedsvd.lora.adapter import Part
from fedsvd.lora.peft_model import lora_sites

_EXAMPLES, _POSITIONS, _PADDING = 2, 5, 3


def check_batch_layout(model: nn.Module, parts: Collection[Part]) -> None:
    """Check that the layers of the given parts get inputs whose first dimension is the batch.

    Args:
        model: The adapted model.
        parts: The parts that are trained.

    Raises:
        PrivacyError: The gradients of an example cannot be told from those of others, or an adapted layer takes no part
            in the predictions.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shapes[name] = tuple((*args, *kwargs.values())[0].shape)

    handles = [
        layer.register_forward_pre_hook(partial(record, name), with_kwargs=True)
        for name, layer in _layers(model, parts)
    ]
    try:
        _logits(model, _tokens(model).repeat(_EXAMPLES, 1))
    finally:
        for handle in handles:
            handle.remove()
    sites = lora_sites(model) if set(parts) - {"head"} else {}
    unused = sorted({name.rsplit(".", 1)[-1] for name in sites if name not in shapes})
    if unused:
        raise PrivacyError(
            f"privacy=dp_sgd is not possible: {', '.join(unused)} of model.target_modules take no part in the "
            "predictions of this architecture, so no example has a gradient there. Leave them out."
        )
    mixed = sorted({name.rsplit(".", 1)[-1] for name, shape in shapes.items() if shape[0] != _EXAMPLES})
    if mixed:
        raise PrivacyError(
            f"privacy=dp_sgd is not possible: {', '.join(mixed)} of model.target_modules process the tokens of all "
            "examples together in this architecture, or a table that all share, so no gradient belongs to one example. "
            "Leave them out, or use privacy=client_level."
        )


def check_causal(model: nn.Module) -> None:
    """Check that a language model's predictions do not depend on later tokens.

    Raises:
        ModelError: They do.
    """
    tokens = _tokens(model)
    other = tokens.clone()
    other[:, -1] = tokens[:, 0]
    if not _agree(_logits(model, tokens)[:, :-1], _logits(model, other)[:, :-1], model):
        raise ModelError(
            "model.task = causal_lm is not possible: the model's predictions depend on later tokens, those that it "
            "would be trained to predict. Choose a causal language model, or set model.task=sequence_classification."
        )


def check_padding(model: nn.Module, pad_token_id: int) -> None:
    """Check that a text's logits do not depend on the padding after it, and so on the other texts of its batch.

    Args:
        model: The adapted model.
        pad_token_id: The tokenizer's padding token.

    Raises:
        ModelError: They do.
    """
    tokens = _tokens(model)
    padding = torch.full((1, _PADDING), pad_token_id, device=tokens.device)
    mask = torch.cat([torch.ones_like(tokens), torch.zeros_like(padding)], dim=1)
    expected, padded = _logits(model, tokens), _logits(model, torch.cat([tokens, padding], dim=1), attention_mask=mask)
    if padded.dim() == 3:
        padded = padded[:, : tokens.shape[1]]
    if not _agree(padded, expected, model):
        raise ModelError(
            "the predictions of this architecture change with the padding of a text, and so with the other texts of "
            "its batch. Set model.pooling=mean, or choose another model."
        )


def check_packing(model: nn.Module) -> None:
    """Check that a language model keeps packed sequences apart.

    Raises:
        ConfigError: It does not.
    """
    # Several rows: flash attention recognizes packed sequences in a batch of one row only.
    tokens = _tokens(model).repeat(_EXAMPLES, 1)
    length = tokens.shape[1]
    positions = torch.arange(length, device=tokens.device).repeat(_EXAMPLES, 2)
    try:
        packed = _logits(model, tokens.repeat(1, 2), attention_mask=None, position_ids=positions)[:, length:]
    except TypeError:
        packed = None
    if packed is None or not _agree(packed, _logits(model, tokens), model):
        raise ConfigError(
            "train.packing = true is not possible: this architecture, or its attention kernel, does not keep packed "
            "sequences apart. Set train.packing=false, or model.attn_implementation=sdpa."
        )


def _layers(model: nn.Module, parts: Collection[Part]) -> Iterator[tuple[str, nn.Module]]:
    if set(parts) - {"head"}:
        yield from ((name, site.layer) for name, site in lora_sites(model).items())
    if "head" in parts:
        for name, wrapper in model.named_modules():
            if isinstance(wrapper, ModulesToSaveWrapper):
                yield name, wrapper


def _tokens(model: Any) -> Tensor:
    """Return one sequence of different tokens, shape (1, positions), which ends in the end token if there is one."""
    end = getattr(model.config, "eos_token_id", None)
    special = {getattr(model.config, "pad_token_id", None), *(end if isinstance(end, list) else [end])}
    ordinary = [number for number in range(int(model.config.vocab_size)) if number not in special][:_POSITIONS]
    if isinstance(end, int):
        # Encoder-decoder classifiers read it.
        ordinary[-1] = end
    return torch.tensor([ordinary], device=next(model.parameters()).device)


@torch.no_grad()
def _logits(model: nn.Module, tokens: Tensor, **inputs: Tensor | None) -> Tensor:
    with _in_eval_mode(model):
        inputs = {"attention_mask": torch.ones_like(tokens), **inputs}
        logits: Tensor = model(input_ids=tokens, **inputs).logits
    return logits.float()


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _agree(actual: Tensor, expected: Tensor, model: Any) -> bool:
    scale = expected.abs().max().clamp(min=1e-6)
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05
    return bool((actual - expected).abs().max() <= tolerance * scale)

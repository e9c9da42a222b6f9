"""The inputs of LoRA sites on public texts, split into content tokens and special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.lora.peft_model import lora_sites
from fedsvd.lora.public_pca import InputMoments
from fedsvd.training.loop import Batch


@torch.no_grad()
def site_input_moments(
    model: nn.Module, batches: Iterable[Batch], special_ids: Iterable[int]
) -> dict[str, InputMoments]:
    """Return the moments of each site's inputs, in the frozen model with B = 0 or whatever factors it has.

    Args:
        model: The adapted model.
        batches: Padded inputs with ``input_ids`` and ``attention_mask``, on the model's device.
        special_ids: Ids of special tokens, such as [CLS] and [SEP].
    """
    special, inputs = list(special_ids), dict[str, Tensor]()
    moments = {name: InputMoments(site.A.shape[1]) for name, site in lora_sites(model).items()}
    model.eval()
    with _record_inputs(model, inputs):
        for batch in batches:
            model(**batch)
            masks = _token_masks(batch, special)
            for name, x in inputs.items():
                _add(moments[name], x, *masks)
            inputs.clear()
    return moments


@torch.no_grad()
def site_text_means(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Return each text's mean input at each site, over its tokens, shape (texts, d_in), float64, on the CPU.

    Args:
        model: The adapted model, with whatever factors it has.
        batches: As for `site_input_moments`.
    """
    inputs, means = dict[str, Tensor](), dict[str, list[Tensor]]()
    model.eval()
    with _record_inputs(model, inputs):
        for batch in batches:
            model(**batch)
            for name, x in inputs.items():
                means.setdefault(name, []).append(_text_means(x.double(), batch["attention_mask"]).cpu())
            inputs.clear()
    return {name: torch.cat(parts) for name, parts in means.items()}


def _text_means(x: Tensor, attention_mask: Tensor) -> Tensor:
    if x.shape[:2] != attention_mask.shape:
        # A site that reads one position per text only (`fedsvd.models.first_token`).
        return x.reshape(len(attention_mask), -1)
    weights = attention_mask.to(x).unsqueeze(-1)
    return (x * weights).sum(dim=1) / weights.sum(dim=1)


def _token_masks(batch: Batch, special: list[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """Return masks of the content tokens and of each special token that occurs, shape (batch, length)."""
    ids, is_token = batch["input_ids"], batch["attention_mask"].bool()
    by_id = {token: (ids == token) & is_token for token in special}
    present = {token: mask for token, mask in by_id.items() if bool(mask.any())}
    content = is_token.clone()
    for mask in present.values():
        content &= ~mask
    return content, present


def _add(moments: InputMoments, x: Tensor, content: Tensor, special: dict[int, Tensor]) -> None:
    if x.shape[:2] == content.shape:
        moments.add(x[content], {token: x[mask] for token, mask in special.items()})
    else:
        # A site that reads one position per text only (`fedsvd.models.first_token`) has no content tokens to compare.
        moments.add(x.reshape(-1, x.shape[-1]), {})


@contextmanager
def _record_inputs(model: nn.Module, inputs: dict[str, Tensor]) -> Iterator[None]:
    def record(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[name] = args[0]

    hooks = [site.layer.register_forward_pre_hook(partial(record, name)) for name, site in lora_sites(model).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

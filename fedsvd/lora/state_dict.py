"""State dicts of PEFT models as adapters: each pair of factors as matrices, all other tensors as they are.

A pair is found by its keys, ``….lora_A.weight`` and ``….lora_B.weight``, with or without the adapter's name before
``.weight``. The keys of a pair with ``lora_*`` for the factor are the name of its site. The scale of a LoRA layer
(``lora_alpha / r``, with rsLoRA ``lora_alpha / √r``) multiplies the product B A and does not change, so it is not
needed; neither is ``fan_in_fan_out``, which concerns the frozen weight. The factors of a convolution are flattened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from fedsvd.errors import ModelError
from fedsvd.lora.adapter import Adapter
from fedsvd.lora.batched import refactorize_sites

_PAIR_KEY = re.compile(r"(?P<before>.+\.)lora_(?P<part>A|B|residual_A|residual_B)(?P<after>(\.[^.]+)?\.weight)")
_SitePart = Literal["A", "B", "base_left", "base_right"]
_PARTS: Mapping[str, _SitePart] = {"A": "A", "B": "B", "residual_B": "base_left", "residual_A": "base_right"}
_EMBEDDING = ".lora_embedding_"


def refactorize_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Refactorize every LoRA layer of a PEFT state dict, without a change of the model's function.

    Each product B A is preserved; then the rows of A are orthonormal, and the columns of B are orthogonal, with the
    singular values of B A as norms (see `fedsvd.refactorize`). All layers of one shape are processed in one call.

    Args:
        state: What `peft.get_peft_model_state_dict` returns: ``….lora_A.weight`` of shape (r, d_in) and
            ``….lora_B.weight`` of shape (d_out, r), or those of convolutions. Keys with an adapter's name
            (``….lora_A.default.weight``) are understood, too. Other tensors are returned as they are.

    Returns:
        A state dict with the same keys in the same order, for `peft.set_peft_model_state_dict`. Factors have their old
        shapes and dtypes.

    Raises:
        ModelError: There is no LoRA layer, a layer lacks a factor, adapts an embedding or has unsuitable shapes, or a
            factor has non-finite entries.

    Example:
        >>> import torch
        >>> import fedsvd
        >>> A, B = torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[1.0], [2.0]])
        >>> state = {"base_model.model.q.lora_A.weight": A, "base_model.model.q.lora_B.weight": B}
        >>> new = fedsvd.refactorize_state_dict(state)
        >>> torch.allclose(new["base_model.model.q.lora_A.weight"], torch.tensor([[0.6, 0.8, 0.0]]))
        True
        >>> torch.allclose(new["base_model.model.q.lora_B.weight"], torch.tensor([[5.0], [10.0]]))
        True
    """
    return to_state_dict(refactorize_sites(from_state_dict(state))[0], state)


def from_state_dict(state: Mapping[str, Tensor]) -> Adapter:
    """Return a state dict as an adapter, whose head holds all tensors that are not LoRA factors, by key.

    Raises:
        ModelError: As for `refactorize_state_dict`, except that entries are not checked.
    """
    pairs: dict[_SitePart, dict[str, Tensor]] = {part: {} for part in _PARTS.values()}
    others = {}
    for key, tensor in state.items():
        if _EMBEDDING in key:
            raise ModelError(
                f"{key} adapts an embedding, which is unsupported: adapt linear or convolutional layers only. Leave "
                "the embedding out of target_modules, or list it in modules_to_save to train it in full."
            )
        match = _PAIR_KEY.fullmatch(key)
        if match:
            site = f"{match['before']}lora_*{match['after']}"
            pairs[_PARTS[match["part"]]][site] = _as_matrix(key, tensor, match["part"])
        else:
            others[key] = tensor
    _check_pairs(pairs["A"], pairs["B"], state)
    scale = dict.fromkeys(pairs["A"], 1.0)
    B = {site: pairs["B"][site] for site in pairs["A"]}
    return Adapter(pairs["A"], B, others, scale, base_left=pairs["base_left"], base_right=pairs["base_right"])


def to_state_dict(adapter: Adapter, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter of `from_state_dict` as a state dict.

    Args:
        adapter: The adapter. Its base, if any, becomes ``….lora_residual_B`` and ``….lora_residual_A``.
        like: A state dict with the shapes, the dtypes of the factors, and the order of the result; it may lack the
            base, which is appended in the dtypes of the factors.
    """
    state = {key: like[key] for key in like if key in adapter.head or _PAIR_KEY.fullmatch(key)} | dict(adapter.head)
    for part, attribute in _PARTS.items():
        for site, matrix in adapter.part(attribute).items():
            factor = like[factor_key(site, part[-1])]
            shape = matrix.shape if part.startswith("residual") else factor.shape
            state[factor_key(site, part)] = matrix.reshape(shape).to(factor.dtype)
    return state


def factor_key(site: str, part: str) -> str:
    """Return the key of one of a site's factors: ``A``, ``B``, ``residual_A`` or ``residual_B``."""
    return site.replace("lora_*", f"lora_{part}")


def _as_matrix(key: str, tensor: Tensor, part: str) -> Tensor:
    """View A of shape (r, …) as (r, d_in), and B of shape (d_out, r, 1, …, 1) as (d_out, r)."""
    is_b = part.endswith("B")
    if tensor.ndim < 2 or tensor.numel() == 0 or (is_b and tensor.shape[2:].numel() != 1):
        expected = "(d_out, r), or (d_out, r, 1, …) of a convolution" if is_b else "(r, d_in), or (r, channels, …)"
        raise ModelError(
            f"{key} has shape {tuple(tensor.shape)}: expected {expected}. Gather the parts of a sharded model before "
            "its state dict is taken."
        )
    return tensor.reshape(*tensor.shape[:2]) if is_b else tensor.reshape(tensor.shape[0], -1)


def _check_pairs(A: Mapping[str, Tensor], B: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    if not A and not B:
        raise ModelError(
            f"the state dict has no LoRA factors: expected keys such as base_model.model.….lora_A.weight, found "
            f"{', '.join(list(state)[:3]) or 'none'}. Pass peft.get_peft_model_state_dict(model)."
        )
    for site in sorted(A.keys() ^ B.keys()):
        missing = factor_key(site, "B" if site in A else "A")
        raise ModelError(f"{missing} is missing: each LoRA layer needs both factors. Pass a complete state dict.")
    for site, factor in A.items():
        if factor.shape[0] != B[site].shape[1]:
            raise ModelError(
                f"{site} has A of shape {tuple(factor.shape)} and B of shape {tuple(B[site].shape)}: expected "
                "(r, d_in) and (d_out, r) with one r. Grouped convolutions are unsupported."
            )
        for name in ("A", "B"):
            dtype = (A if name == "A" else B)[site].dtype
            if not dtype.is_floating_point:
                raise ModelError(f"{factor_key(site, name)} has dtype {dtype}: expected a floating-point dtype.")

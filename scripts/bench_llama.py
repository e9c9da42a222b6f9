"""Llama-type models with random weights, in bfloat16 or on a base in nf4, for `scripts/bench gpu` and `memory`."""

from typing import Any, NamedTuple

import torch
from bench_dp_modes import Bench
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedsvd.lora import peft_model
from fedsvd.lora.initialization import initialize_factors


class Shape(NamedTuple):
    """A Llama-type model with random weights, and a batch."""

    layers: int
    width: int
    heads: int
    inner: int
    batch: int
    length: int


VOCABULARY = 32000
MODELS = {"1B": Shape(16, 2048, 32, 8192, 8, 512), "7B": Shape(32, 4096, 32, 11008, 8, 512)}
SMALL_MODELS = {"small": Shape(2, 64, 2, 128, 3, 16)}


def linear_weights(size: Shape) -> int:
    """Return the number of weights of the linear layers, the output layer included."""
    return size.layers * (4 * size.width**2 + 3 * size.width * size.inner) + VOCABULARY * size.width


def build(size: Shape, kind: str, device: torch.device) -> Bench:
    """Build a model with LoRA of rank 16 on queries and values, and a batch of random tokens.

    Args:
        size: The shape.
        kind: ``bfloat16``, or ``nf4`` for a 4-bit base, which is built layer by layer: in bfloat16, 7B would not fit
            into 16 GiB.
        device: The device.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=size.width, num_hidden_layers=size.layers, use_cache=False,
        num_attention_heads=size.heads, num_key_value_heads=size.heads, intermediate_size=size.inner,
    )  # fmt: skip
    with torch.device("meta") if kind == "nf4" else device:
        base = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    if kind == "nf4":
        fill_quantized(base, device)
    model: nn.Module = peft_model.attach(base, rank=16, lora_alpha=16, target_modules="auto", task="causal_lm")
    peft_model.write(model, initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="zeros", seed=0))
    ids = torch.randint(3, VOCABULARY, (size.batch, size.length), device=device)
    return Bench(model.to(device).train(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids, causal=True)


def fill_quantized(model: Any, device: torch.device) -> None:
    """Give a model on the meta device random weights: its linear layers, except the output layer, in 4 bits."""
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, nn.Linear) and name != "lm_head":
            model.set_submodule(name, random_linear(layer.in_features, layer.out_features).to(device))
            continue
        for key, parameter in [*layer.named_parameters(recurse=False)]:
            value = torch.ones(parameter.shape, dtype=torch.bfloat16, device=device)
            weight = value if parameter.dim() == 1 else value.normal_(0, 0.02)
            setattr(layer, key, nn.Parameter(weight, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    model.is_loaded_in_4bit = True


def random_linear(d_in: int, d_out: int) -> nn.Module:
    import bitsandbytes

    layer: nn.Module = bitsandbytes.nn.Linear4bit(
        d_in, d_out, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    weight = torch.empty(d_out, d_in, dtype=torch.bfloat16).normal_(0, 0.02)
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return layer

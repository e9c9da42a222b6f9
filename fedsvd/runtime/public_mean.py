"""The projection that removes the mean gradient of public texts (``privacy.project_public_mean``).

With class probabilities p, label y and ``J_k(x) = ∂ logit_k(x) / ∂θ``, the gradient of an example's cross-entropy is

    g = Σₖ (pₖ - [y = k]) J_k(x) = Σ_{k<K} (pₖ - [y = k]) (J_k(x) - J_K(x)),

because the coefficients sum to 0. Factors see nearly the same Jacobian J_k in all texts, so the gradients of all
examples lie near the K - 1 directions ``J̄_k - J̄_K`` of its mean over public texts: they move the logits of all texts
by the same amount, as the head's bias does, and take up the norm to which gradients are clipped. A regression has one
output, and the one direction J̄. The round trains
orthogonally to them, by the map ``T = S = I - Qᵀ Q`` of `fedsvd.privacy.gradient_maps`, where the rows of Q are an
orthonormal basis of these directions.

Q depends on public text, and on the global model, which is released anyway; not on labels, and not on private text.
It therefore costs no privacy (the proof is in `fedsvd.privacy.gradient_maps`). Each client computes it from its copy of
the public text, so nothing more is sent. With ``privacy.noise_share``, the server computes it, too, and applies S.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import peft
import torch
from torch import Tensor, nn

from fedsvd.config import Config, ModelConfig
from fedsvd.data.public_text import spread
from fedsvd.models.loading import load_tokenizer
from fedsvd.models.text_batches import text_batches
from fedsvd.privacy.gradient_maps import GradientMap, Projection, map_before_clipping
from fedsvd.runtime.base_model import load_public_corpus
from fedsvd.training.loop import Batch, StateCache

# The mean direction hardly changes with more texts, and every client computes it in every round.
MAX_TEXTS = 128


def public_mean_projection(
    config: Config,
    model: peft.PeftModel,
    factors: Sequence[nn.Parameter],
    cache: StateCache,
    maps: Sequence[GradientMap],
) -> Projection:
    """Return the projection at the model's current parameters.

    Args:
        config: The configuration of the run.
        model: The process's model, with the received adapter.
        factors: The trained factors.
        cache: The model's cache of frozen layers.
        maps: Maps that are applied before the projection; the directions are in their coordinates.
    """
    jacobians = _mean_jacobians(model, _public_inputs(config.model), factors, cache)
    contrasts = [jacobian[:-1] - jacobian[-1:] if len(jacobian) > 1 else jacobian for jacobian in jacobians]
    return Projection.orthogonal_to(factors, map_before_clipping(maps, factors, contrasts))


def _mean_jacobians(
    model: peft.PeftModel, batches: Sequence[Batch], factors: Sequence[nn.Parameter], cache: StateCache
) -> list[Tensor]:
    """Return the mean gradient of each class's logit, shape (classes, *parameter) for each parameter."""
    sums: list[list[Tensor]] = []
    count = 0
    model.eval()
    for batch in batches:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with cache.reuse_states(model, inputs):
            totals = model(**inputs).logits.float().sum(dim=0)
        rows = [torch.autograd.grad(total, factors, retain_graph=True) for total in totals]
        stacked = [torch.stack(gradients) for gradients in zip(*rows, strict=True)]
        sums.append(stacked)
        count += len(inputs["input_ids"])
    return [torch.stack(parts).sum(dim=0) / count for parts in zip(*sums, strict=True)]


def clear_public_inputs() -> None:
    """Clear the cache of tokenized public texts."""
    _public_inputs.cache_clear()


@lru_cache(maxsize=2)
def _public_inputs(config: ModelConfig) -> tuple[Batch, ...]:
    """Return the tokenized public texts, on the CPU."""
    texts = spread(load_public_corpus(config.public_text).texts, MAX_TEXTS)
    tokenizer = load_tokenizer(config.source)
    batches = text_batches(texts, tokenizer, config.max_length, torch.device("cpu"))
    # Without token types, as clients tokenize single texts.
    return tuple({name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches)

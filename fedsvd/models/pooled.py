"""A sequence classifier that pools a layer's hidden states, standardizes them, and ends in a head.

With hidden states ``h`` of a text's tokens, shape (length, d), the features of a text are

    x = LN(pool(h)),    f = s · H (x - μ)

``pool`` takes the mean of the tokens, the first, or the last one; padding does not count. ``LN`` is layer normalization
without parameters. μ, H and s are frozen (`fedsvd.models.standardization`); without standardization, f = s · x. In
both cases the mean norm of f is `FEATURE_NORM`, so that one learning rate and one clipping norm fit both. The
normalization is part of the definition because it makes an exact export to a stock class possible: a transformer layer
with uniform attention computes ``LN(mean(h))``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from fedsvd.models.heads import build_head
from fedsvd.models.standardization import FEATURE_NORM, Standardization

Pooling = Literal["first", "mean", "last"]


class PooledClassifier(PreTrainedModel):
    """A frozen-feature classifier around a transformer without a head.

    Args:
        backbone: A model whose output has ``last_hidden_state``.
        pooling: Which tokens the features are taken from.
        num_labels: Number of classes.
        seed: Seed of the head's initial weight; its bias starts at zero.
        standardization: The features' standardization; None scales them only.
        head: Name of a head of another package, or ``linear``.
    """

    mean: Tensor
    matrix: Tensor
    supports_gradient_checkpointing = True
    # transformers checks these for the backbone, too.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(
        self,
        backbone: PreTrainedModel,
        pooling: Pooling,
        num_labels: int,
        seed: int,
        standardization: Standardization | None = None,
        head: str = "linear",
    ) -> None:
        super().__init__(backbone.config)
        # OPT projects its hidden states to the width of its token embeddings.
        width = int(getattr(backbone.config, "word_embed_proj_dim", backbone.config.hidden_size))
        self.backbone = backbone
        self.pooling = pooling
        self.standardization = standardization
        self.register_buffer("mean", None if standardization is None else standardization.mean.float())
        self.register_buffer("matrix", None if standardization is None else standardization.matrix.float())
        # A linear layer, or a module of another package.
        self.classifier: Any
        if head == "linear":
            std = float(getattr(backbone.config, "initializer_range", 0.02))
            self.classifier = _linear_head(width, num_labels, seed, std)
        else:
            self.classifier = build_head(head, width, num_labels, seed)

    def place_head(self, device: str) -> None:
        """Move the head and the standardization to a device; the backbone stays where it is."""
        self.classifier.to(device)
        if self.standardization is not None:
            self.mean, self.matrix = self.mean.to(device), self.matrix.to(device)

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's token embeddings."""
        embeddings: nn.Module = self.backbone.get_input_embeddings()  # type: ignore[no-untyped-call]
        return embeddings

    def pooled_states(self, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        """Return ``x`` of each text, shape (batch, d), float32.

        Args:
            attention_mask: 1 at tokens and 0 at padding, shape (batch, length); None where there is no padding.
            inputs: Further inputs of the backbone.
        """
        states = self.backbone(attention_mask=attention_mask, **inputs).last_hidden_state
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        return normalize(pool(states, attention_mask, self.pooling))

    def features(self, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        """Return ``f`` of each text, shape (batch, d), float32; for the arguments see `pooled_states`."""
        return self.standardize(self.pooled_states(attention_mask, **inputs))

    def standardize(self, pooled: Tensor) -> Tensor:
        """Return ``f`` for ``x``."""
        if self.standardization is None:
            return pooled * (FEATURE_NORM / math.sqrt(pooled.shape[-1]))
        # The matrix is symmetric.
        return (pooled - self.mean) @ self.matrix

    def affine_map(self) -> tuple[Tensor, Tensor]:
        """Return matrix, shape (d, d), and offset, shape (d,), of ``f = x @ matrix + offset``, for exports."""
        if self.standardization is None:
            width = self.classifier.in_features
            return torch.eye(width) * (FEATURE_NORM / math.sqrt(width)), torch.zeros(width)
        matrix, mean = self.standardization.matrix, self.standardization.mean
        return matrix.float(), -(mean @ matrix).float()

    def forward(self, **inputs: Any) -> SequenceClassifierOutput:
        """Return the logits of each text, shape (batch, classes).

        Args:
            inputs: Inputs of the backbone, by name. Arguments without a value, ``labels`` and ``return_dict`` are
                ignored.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        for name in ("labels", "return_dict"):
            given.pop(name, None)
        return SequenceClassifierOutput(logits=self.classifier(self.features(**given)))


@torch.no_grad()
def _linear_head(width: int, num_labels: int, seed: int, std: float) -> nn.Linear:
    layer = nn.Linear(width, num_labels)
    layer.weight.copy_(torch.randn(num_labels, width, generator=torch.Generator().manual_seed(seed)) * std)
    layer.bias.zero_()
    return layer


def pool(states: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool the tokens of each text in float32.

    Args:
        states: Hidden states, shape (batch, length, d).
        attention_mask: 1 at tokens and 0 at padding, shape (batch, length), on either side.
        pooling: ``mean``, ``first`` or ``last``.

    Returns:
        Shape (batch, d).
    """
    is_token = attention_mask.bool()
    if pooling == "mean":
        summed = states.float().masked_fill(~is_token.unsqueeze(-1), 0).sum(dim=1)
        return summed / is_token.sum(dim=1, keepdim=True).clamp(min=1)
    # argmax returns the first of several maxima.
    index = is_token.int().argmax(dim=1)
    if pooling == "last":
        index = is_token.shape[1] - 1 - is_token.flip(1).int().argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), index].float()


def normalize(pooled: Tensor) -> Tensor:
    """Apply layer normalization without parameters."""
    return functional.layer_norm(pooled, pooled.shape[-1:], eps=1e-12)

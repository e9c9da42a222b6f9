"""The number of positions of a model, which limits the length of its inputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fedsvd.config import ModelConfig
from fedsvd.errors import ModelError

# Names of tables with one row per position: learned or sinusoidal embeddings, and GPT-J's table of rotations. Relative
# positions, ALiBi and computed rotations have no such table.
_TABLES = ("position_embeddings", "position_embedding", "wpe", "embed_positions")


def position_limit(model: nn.Module) -> int | None:
    """Return the number of tokens that a model can position; None if there is no limit.

    Some models reserve the first rows of their table: RoBERTa and MPNet those up to the padding token's id, OPT and
    BART the first two.
    """
    return min(_capacities(model), default=None)


def check_max_length(model: nn.Module, config: ModelConfig) -> None:
    """Check ``model.max_length`` against the model's positions.

    Raises:
        ModelError: The model has fewer positions.
    """
    limit = position_limit(model)
    if limit is not None and config.max_length > limit:
        raise ModelError(
            f"model.max_length = {config.max_length} is invalid: {config.source} has positions for {limit} tokens; "
            f"expected 1 to {limit}. Lower model.max_length."
        )


def _capacities(model: nn.Module) -> Iterator[int]:
    configured = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in _TABLES:
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            rows = module.num_embeddings - int(getattr(module, "offset", reserved))
            yield min(rows, configured) if isinstance(configured, int) else rows
    for name, buffer in model.named_buffers():
        if name.rsplit(".", 1)[-1] == "embed_positions":
            yield len(buffer)

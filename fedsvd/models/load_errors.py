"""Errors while models and tokenizers are loaded, in terms of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from fedsvd.errors import ModelError

# What transformers says of an architecture without an attention implementation.
_UNSUPPORTED = {
    "sdpa": "does not support an attention implementation",
    "flash_attention_2": "does not support Flash Attention",
}


@contextmanager
def convert_errors(source: str) -> Iterator[None]:
    """Convert errors raised while loading ``source`` to `ModelError`."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        for kind, message in _UNSUPPORTED.items():
            if message in str(error):
                name = str(error).partition(" ")[0]
                raise ModelError(
                    f"model.attn_implementation = {kind} is not possible with model.source = {source!r}: {name} has no "
                    "such attention in transformers. Set it to auto or eager."
                ) from error
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"model.source = {source!r} cannot be loaded ({reason}). Set it to embedded:minilm, embedded:tiny, a "
            "directory written by save_pretrained, or the id of a hub model that this machine can reach."
        ) from error
    except RuntimeError as error:
        # transformers raises this error, without the shapes, if the checkpoint's arrays do not match the model.
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ModelError(
            f"model.source = {source!r} has arrays whose shapes do not match this task, such as a head for another "
            "number of labels. Choose a base model without a head, or one whose head matches the dataset's labels."
        ) from error

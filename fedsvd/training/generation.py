"""Greedy decoding of a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from fedsvd import data
from fedsvd.config import DataConfig, ModelConfig
from fedsvd.config.model import MAX_NEW_TOKENS
from fedsvd.models.embedded import quiet_transformers
from fedsvd.models.positions import position_limit


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        text: The answer, without special tokens and surrounding whitespace.
        is_complete: Whether the model ended it; otherwise it stops at the largest number of tokens.
    """

    text: str
    is_complete: bool


@torch.inference_mode()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 8,
    stop_tokens: Sequence[int] = (),
    on_text: Callable[[str], None] | None = None,
) -> list[Answer]:
    """Generate an answer to each prompt by greedy decoding.

    Args:
        model: A causal language model, or a PEFT model around one.
        tokenizer: The model's tokenizer.
        prompts: Token ids of each prompt.
        max_new_tokens: Generation stops after this many tokens, at the end token, or at the model's last position.
        batch_size: Number of prompts per forward pass.
        stop_tokens: Tokens that end an answer besides the end token.
        on_text: Called with each piece of an answer as soon as it is generated, one prompt at a time.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ends = [data.end_token(tokenizer), *stop_tokens]
    positions = position_limit(model)
    answers: list[Answer] = []
    # Batches are padded to their longest prompt: with few positions, that would leave the others less room.
    is_crowded = positions is not None and max(map(len, prompts), default=0) + max_new_tokens > positions
    size = 1 if on_text is not None or is_crowded else batch_size
    for start in range(0, len(prompts), size):
        rows = [list(row) for row in prompts[start : start + size]]
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="left").to(device)
        room = max_new_tokens if positions is None else positions - batch["input_ids"].shape[1]
        with _plain_generation(model), quiet_transformers():
            generated: Any = model.generate(  # type: ignore[operator]
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=min(max_new_tokens, room),
                do_sample=False,
                use_cache=True,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
                streamer=None if on_text is None else _Pieces(tokenizer, on_text),
            )
        new = generated[:, batch["input_ids"].shape[1] :]
        are_complete = torch.isin(new, torch.tensor(ends, device=new.device)).any(dim=1).tolist()
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        answers += [Answer(text.strip(), ended) for text, ended in zip(texts, are_complete, strict=True)]
    model.train(was_training)
    return answers


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Replace a checkpoint's own settings of generation, such as beams or a repetition penalty, by the defaults."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own, base.generation_config = base.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        base.generation_config = own


class _Pieces(TextStreamer):
    """Passes on the text of an answer word by word, without leading whitespace."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text
        self._has_begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Receive the next piece."""
        piece = text if self._has_begun else text.lstrip()
        if piece:
            self._has_begun = True
            self._on_text(piece)


def prompt_limit(model: nn.Module, max_length: int, max_new_tokens: int = MAX_NEW_TOKENS) -> int:
    """Return how long a prompt may be: ``max_length``, and shorter by an answer than the model's positions allow."""
    positions = position_limit(model)
    return max_length if positions is None else min(max_length, max(positions - max_new_tokens, positions // 2))


def generate_samples(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Dataset, config: DataConfig, model_config: ModelConfig
) -> list[dict[str, str]]:
    """Generate answers to a few rows of held-out data.

    Args:
        model: A causal language model, or a PEFT model around one.
        tokenizer: The model's tokenizer.
        rows: The rows to turn into prompts.
        config: Settings that define the prompts.
        model_config: Maximum length and chat template.

    Returns:
        For each row, a dict with ``prompt``, ``expected`` and ``generated``.
    """
    prompts = data.build_prompts(
        rows, config, model_config, tokenizer, prompt_limit(model, model_config.max_length), with_answers=True
    )
    ids, stops = [prompt.ids for prompt in prompts], data.stop_tokens(config, tokenizer)
    answers = generate(model, tokenizer, ids, stop_tokens=stops)
    return [
        {"prompt": prompt.text, "expected": prompt.answer, "generated": answer.text}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]

"""Checks of architectures by forward passes on made-up tokens."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import save_checkpoint

from fedsvd.config import ModelConfig
from fedsvd.errors import ConfigError, ModelError, PrivacyError
from fedsvd.lora import peft_model
from fedsvd.models.loading import load_base, load_causal_lm, load_tokenizer
from fedsvd.training.generation import generate, prompt_limit
from fedsvd.training.probes import check_batch_layout, check_causal, check_packing


def adapted(source: str, targets: list[str], task: str = "sequence_classification") -> peft.PeftModel:
    base, head = load_base(ModelConfig("own", source, task=task, attn_implementation="auto"), 2, 0)  # type: ignore[arg-type]
    return peft_model.attach(base, rank=2, lora_alpha=2, target_modules=targets, task=task, head_modules=head)


def test_layers_that_mix_examples_are_refused_by_name(tmp_path: Path) -> None:
    xlnet = adapted(save_checkpoint("xlnet", tmp_path / "xlnet"), ["layer_1", "layer_2"])
    with pytest.raises(PrivacyError, match=r"layer_1, layer_2 of model.target_modules process the tokens of all"):
        check_batch_layout(xlnet, {"B", "head"})
    # The head reads one vector per example.
    check_batch_layout(xlnet, {"head"})
    opt = adapted(save_checkpoint("opt", tmp_path / "opt"), ["q_proj", "fc1"], "causal_lm")
    with pytest.raises(PrivacyError, match="not possible: fc1 of"):
        check_batch_layout(opt, {"B"})
    check_batch_layout(adapted("embedded:tiny", ["query", "dense"]), {"A", "B", "head"})


def test_an_adapted_layer_without_a_part_in_the_predictions_is_refused_by_name() -> None:
    base, head = load_base(ModelConfig("own", "embedded:tiny", pooling="stock"), 2, 0)
    base.unused = torch.nn.Linear(8, 8)
    model = peft_model.attach(base, rank=2, lora_alpha=2, target_modules=["query", "unused"], head_modules=head)
    with pytest.raises(PrivacyError, match=r"not possible: unused of model\.target_modules take no part"):
        check_batch_layout(model, {"B"})
    check_batch_layout(model, {"head"})


def test_a_language_model_must_not_read_what_it_predicts(tmp_path: Path) -> None:
    check_causal(load_causal_lm("embedded:tiny-llama").model)
    encoder = load_causal_lm(save_checkpoint("electra", tmp_path, "causal_lm", is_decoder=True)).model
    check_causal(encoder)
    encoder = load_causal_lm(save_checkpoint("xlnet", tmp_path / "xlnet", "causal_lm")).model
    with pytest.raises(ModelError, match="depend on later tokens"):
        check_causal(encoder)


def test_packing_is_refused_where_sequences_are_not_kept_apart(tmp_path: Path) -> None:
    check_packing(load_causal_lm("embedded:tiny-llama").model)
    with pytest.raises(ConfigError, match="packing = true is not possible"):
        check_packing(load_causal_lm(save_checkpoint("bloom", tmp_path)).model)


def test_packing_is_refused_where_only_a_single_row_is_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm("embedded:tiny-llama").model
    forward = model.forward

    def like_flash_attention(position_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        is_recognized = position_ids is not None and len(position_ids) == 1
        return forward(position_ids=position_ids if is_recognized else None, **inputs)

    monkeypatch.setattr(model, "forward", like_flash_attention)
    with pytest.raises(ConfigError, match=r"or its attention kernel.* or model\.attn_implementation=sdpa"):
        check_packing(model)


def test_generation_ends_at_the_last_position(tmp_path: Path) -> None:
    source = save_checkpoint("opt", tmp_path, max_position_embeddings=30)
    model, tokenizer = load_causal_lm(source).model, load_tokenizer(source)

    assert prompt_limit(model, 64) == 15
    assert prompt_limit(model, 10) == 10
    assert prompt_limit(load_causal_lm(save_checkpoint("bloom", tmp_path / "bloom")).model, 64) == 64
    [answer] = generate(model, tokenizer, [list(range(200, 215))])
    assert isinstance(answer.text, str)
    # Nor does an answer depend on the prompts beside it.
    beside, _ = generate(model, tokenizer, [[201, 202, 203], list(range(200, 220))], max_new_tokens=20)
    assert [beside] == generate(model, tokenizer, [[201, 202, 203]], max_new_tokens=20)
    assert torch.isfinite(next(model.parameters())).all()

"""The loss over a large vocabulary in chunks equals that of all logits at once, with cached frozen layers too."""

from contextlib import nullcontext
from pathlib import Path

import peft
import pytest
import torch
from families import save_checkpoint
from torch import Tensor, nn

from fedsvd.lora import peft_model
from fedsvd.models.loading import load_causal_lm
from fedsvd.privacy.grad_sample_modes import per_example_gradients
from fedsvd.training import token_scores
from fedsvd.training.causal_lm import score_answers
from fedsvd.training.per_example_gradients import fused_gradients
from fedsvd.training.prefix_cache import PrefixCache
from fedsvd.training.state_store import MemoryBudget, StateStore

IDS = torch.arange(200, 224).view(3, 8)
LABELS = IDS.masked_fill(torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0], [1] * 5 + [0] * 3, [0] * 8]).bool(), -100)
# The first text has two tokens of padding.
MASK = torch.tensor([[1] * 6 + [0] * 2, [1] * 8, [1] * 8])


def adapted(source: str, lora_layers: str = "all") -> peft.PeftModel:
    torch.manual_seed(0)
    base = load_causal_lm(source).model
    model = peft_model.attach(
        base, rank=4, lora_alpha=16, target_modules="auto", task="causal_lm", lora_layers=lora_layers
    )
    for B in peft_model.set_trainable(model, {"B"}):
        torch.nn.init.normal_(B)
    return model


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_chunks_have_the_same_scores_and_gradients(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted("embedded:tiny-llama" if family == "llama" else save_checkpoint("gemma2", tmp_path))
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    seen: list[int] = []
    output = model.get_output_embeddings()
    output.register_forward_hook(lambda module, args, logits: seen.append(logits.numel()))

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        losses = score_answers(model, inputs, LABELS).losses
        return losses.detach(), per_example_gradients(
            model, lambda wrapped, _: score_answers(wrapped, inputs, LABELS).means, range(3), fused_gradients
        )

    plain, plain_gradients = run()
    size = 2 * 3 * len(output.weight)
    monkeypatch.setattr(token_scores, "MAX_LOGITS", size)
    score_answers(model, inputs, LABELS)
    seen.clear()
    chunked, gradients = run()

    torch.testing.assert_close(chunked, plain)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], atol=1e-6, rtol=1e-4)
    # Gemma 2 bounds its logits after the output layer, so they are computed at once.
    assert max(seen) == (size if family == "llama" else 3 * 7 * len(output.weight))


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt_neox"])
def test_chunks_and_cached_layers_have_the_same_scores_and_gradients_together(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "embedded:tiny-llama" if family == "llama" else save_checkpoint(family, tmp_path)
    model = adapted(source, lora_layers="top_1").eval()
    inputs, labels = {"input_ids": IDS, "attention_mask": MASK}, LABELS.masked_fill(MASK == 0, -100)
    seen: list[int] = []
    output = model.get_output_embeddings()
    output.register_forward_hook(lambda module, args, logits: seen.append(logits.numel()))

    def losses(wrapped: nn.Module, cache: PrefixCache | None) -> Tensor:
        with cache.reuse_states(wrapped, inputs) if cache is not None else nullcontext():
            return score_answers(wrapped, inputs, labels).means

    def run(cache: PrefixCache | None) -> tuple[Tensor, dict[str, Tensor]]:
        scores = losses(model, cache).detach()
        return scores, per_example_gradients(model, lambda m, _: losses(m, cache), range(3), fused_gradients)

    expected, expected_gradients = run(None)
    size = 3 * len(output.weight)
    monkeypatch.setattr(token_scores, "MAX_LOGITS", size)
    for cache in (PrefixCache(model, StateStore(MemoryBudget(2**20))), None):
        token_scores._ENDS_IN_OUTPUT_LAYER.clear()
        if cache is not None:
            with cache.reuse_states(model, inputs):
                # The cache has tried the model out.
                seen.clear()
        chunked, gradients = run(cache)

        torch.testing.assert_close(chunked, expected, atol=1e-5, rtol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-6, rtol=1e-4)
        # One position of each text at a time, also where the chunks are tried out.
        assert max(seen) == size
        assert cache is None or len(cache) == 3

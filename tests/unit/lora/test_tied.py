"""Output layers that share their weight with the token embeddings, and layers that cannot be adapted."""

from pathlib import Path

import peft
import pytest
import torch
from families import logits, save_checkpoint
from transformers import AutoModelForCausalLM

from fedsvd.config import ModelConfig
from fedsvd.errors import ModelError
from fedsvd.lora import peft_model
from fedsvd.lora.initialization import initialize_factors
from fedsvd.models.loading import load_base, load_causal_lm


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_checkpoint("qwen2", tmp_path_factory.mktemp("tied"))


def test_an_adapted_output_layer_gets_its_own_weight(tied: str, tmp_path: Path) -> None:
    base = load_causal_lm(tied).model
    assert base.lm_head.weight is base.model.embed_tokens.weight
    model = peft_model.attach(base, rank=2, lora_alpha=16, target_modules=["q_proj", "lm_head"], task="causal_lm")
    drawn = initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="orthonormal", seed=0)
    peft_model.write(model, drawn)
    expected = logits(model)
    assert (expected - logits(load_causal_lm(tied).model)).abs().max() > 0.01

    # A base that the server merges into the frozen weight leaves the embeddings alone, too.
    embeddings = base.get_input_embeddings().weight.clone()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in drawn.B.items()}
    peft_model.write(model, peft_model.Adapter(drawn.A, zeros, {}, drawn.scale, {}, drawn.B, drawn.A))
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(base.get_input_embeddings().weight, embeddings)
    peft_model.write(model, drawn)

    peft_model.save_pretrained(model, drawn, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 300_000
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected)
    with pytest.warns(UserWarning, match="tie"):
        loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tied), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), expected)


def test_an_output_layer_that_is_not_adapted_stays_tied(tied: str) -> None:
    for targets in ("auto", "all-linear", ["q_proj"]):
        base = load_causal_lm(tied).model
        peft_model.attach(base, rank=2, lora_alpha=16, target_modules=targets, task="causal_lm")
        assert base.lm_head.weight is base.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "embed_tokens"], r"includes model.embed_tokens, which is of type Embedding: only linear layers"),
        (["norm"], r"\['norm'\] includes model.norm, which is of type Qwen2RMSNorm"),
        (["query"], r"\['query'\] matches no layer of Qwen2ForCausalLM; choose .* q_proj"),
    ],
)
def test_layers_that_are_not_linear_are_refused(targets: list[str], message: str, tied: str) -> None:
    with pytest.raises(ModelError, match=message):
        peft_model.attach(load_causal_lm(tied).model, rank=2, lora_alpha=2, target_modules=targets, task="causal_lm")


def test_shared_layers_are_adapted_together_or_not_at_all(tmp_path: Path) -> None:
    source = save_checkpoint("albert", tmp_path)

    def attach(layers: str) -> peft.PeftModel:
        base, head = load_base(ModelConfig("own", source, attn_implementation="auto"), 2, 0)
        return peft_model.attach(
            base, rank=2, lora_alpha=2, target_modules="auto", lora_layers=layers, head_modules=head
        )

    assert len(peft_model.lora_sites(attach("all"))) == 2
    with pytest.raises(ModelError, match=r"top_1' is not possible with Albert.* 2 layers share their weights"):
        attach("top_1")

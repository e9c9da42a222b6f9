"""Tests of model families: adapted layers, and per-example gradients against a loop over single examples."""

from collections.abc import Callable, Sequence

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fedsvd.errors import ModelError, PrivacyError
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Part
from fedsvd.lora.initialization import initialize_factors
from fedsvd.models.loading import checkpoint_activations
from fedsvd.privacy.grad_sample_modes import GradSampleMode, opacus_hooks, per_example_gradients
from fedsvd.training.loop import model_inputs
from fedsvd.training.objectives import make_objective
from fedsvd.training.per_example_gradients import choose_grad_sample_mode, fused_gradients, unsupported_reason
from fedsvd.training.prefix_cache import PrefixCache
from fedsvd.training.state_store import MemoryBudget, StateStore

ENCODER = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
           "pad_token_id": 0}  # fmt: skip
DISTILBERT = DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=24, dropout=0.0,
                              attention_dropout=0.0, seq_classif_dropout=0.0)  # fmt: skip
GPT2 = GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                  pad_token_id=0, use_cache=False)  # fmt: skip
LLAMA = LlamaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    intermediate_size=24, pad_token_id=0, use_cache=False)  # fmt: skip
OPT = OPTConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24)

CLASSIFIERS: dict[str, tuple[Callable[[], PreTrainedModel], list[str]]] = {
    "bert": (lambda: BertForSequenceClassification(BertConfig(**ENCODER)), ["classifier"]),
    "roberta": (lambda: RobertaForSequenceClassification(RobertaConfig(**ENCODER)), ["classifier"]),
    "distilbert": (lambda: DistilBertForSequenceClassification(DISTILBERT), ["pre_classifier", "classifier"]),
    "gpt2": (lambda: GPT2ForSequenceClassification(GPT2), ["score"]),
    "llama": (lambda: LlamaForSequenceClassification(LLAMA), ["score"]),
}
CAUSAL: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2),
    "llama": lambda: LlamaForCausalLM(LLAMA),
}
ALL = [*((name, "sequence_classification") for name in CLASSIFIERS), *((name, "causal_lm") for name in CAUSAL)]
LENGTHS = [3, 7, 4, 7]


def adapted(
    family: str,
    task: str,
    targets: str = "auto",
    parts: set[Part] | None = None,
    layers: str = "all",
    bf16: bool = False,
) -> peft.PeftModel:
    torch.manual_seed(0)
    base, head = (CAUSAL[family](), []) if task == "causal_lm" else (CLASSIFIERS[family][0](), CLASSIFIERS[family][1])
    model = peft_model.attach(
        base.to(torch.bfloat16) if bf16 else base,
        rank=4,
        lora_alpha=16,
        target_modules=targets,
        task=task,
        lora_layers=layers,
        head_modules=head,
    )
    peft_model.write(model, initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="kaiming", seed=0))
    peft_model.set_trainable(model, parts or {"B"})
    return model


def batch(task: str, positions: Sequence[int]) -> dict[str, Tensor]:
    ids = torch.zeros(len(positions), max(LENGTHS[i] for i in positions), dtype=torch.long)
    for row, i in enumerate(positions):
        ids[row, : LENGTHS[i]] = torch.randint(1, 60, (LENGTHS[i],), generator=torch.Generator().manual_seed(i))
    # The first two tokens of a sequence are its prompt.
    answers = torch.where((ids != 0) & (torch.arange(ids.shape[1]) > 1), ids, torch.full_like(ids, -100))
    labels = answers if task == "causal_lm" else torch.tensor([i % 2 for i in positions])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def check_against_loop(
    model: peft.PeftModel,
    task: str,
    per_example: GradSampleMode,
    cache: PrefixCache | None = None,
    tolerance: float = 1e-5,
) -> None:
    objective = make_objective(task)

    def losses(module: nn.Module, positions: Sequence[int]) -> Tensor:
        drawn = batch(task, positions)
        if cache is None:
            return objective.losses(module, drawn)
        with cache.reuse_states(module, model_inputs(drawn)):
            return objective.losses(module, drawn)

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = per_example_gradients(model, losses, range(4), per_example)

    assert gradients.keys() == trained.keys()
    for position in range(4):
        expected = torch.autograd.grad(losses(model, [position]).sum(), list(trained.values()))
        for name, gradient in zip(trained, expected, strict=True):
            scale = max(1.0, gradient.abs().max().item())
            torch.testing.assert_close(gradients[name][position], gradient, atol=tolerance * scale, rtol=tolerance)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients.values())


@pytest.mark.parametrize("per_example", [fused_gradients, opacus_hooks])
@pytest.mark.parametrize("targets", ["auto", "all-linear"])
@pytest.mark.parametrize(("family", "task"), ALL)
def test_per_example_gradients_equal_a_loop(family: str, task: str, targets: str, per_example: GradSampleMode) -> None:
    parts: set[Part] = {"B", "head"} if targets == "auto" else {"A", "B", "head"}
    model = adapted(family, task, targets, parts)

    assert unsupported_reason(model) is None
    check_against_loop(model, task, per_example)


@pytest.mark.parametrize(("family", "task"), ALL)
def test_checkpointing_and_prefix_cache_give_the_same_gradients(
    family: str, task: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(family, task, "all-linear", {"A", "B"}, layers="top_1")
    cache = PrefixCache(model, StateStore(MemoryBudget(2**20)))
    checkpoint_activations(model.get_base_model())

    for _ in range(2):
        check_against_loop(model, task, fused_gradients, cache)

    assert len(cache) == 4
    assert not [record for record in caplog.records if record.name.startswith("fedsvd")]


def test_hooks_mode_rejects_gradient_checkpointing() -> None:
    model = adapted("llama", "causal_lm")
    checkpoint_activations(model.get_base_model())

    assert choose_grad_sample_mode(model, "auto") is fused_gradients
    with pytest.raises(PrivacyError, match="gradient_checkpointing = true"):
        choose_grad_sample_mode(model, "hooks")


@pytest.mark.parametrize(("family", "task"), ALL)
def test_bfloat16_model_trains_float32_factors(family: str, task: str) -> None:
    model = adapted(family, task, "auto", {"A", "B", "head"}, bf16=True)

    assert unsupported_reason(model) is None
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.get_base_model().dtype == torch.bfloat16
    # Batched and single computations round differently, and bfloat16 has only 8 bits of precision.
    check_against_loop(model, task, fused_gradients, tolerance=0.05)


EXPECTED = {"bert": {"query", "value"}, "roberta": {"query", "value"}, "distilbert": {"q_lin", "v_lin"},
            "gpt2": {"c_attn"}, "llama": {"q_proj", "v_proj"}}  # fmt: skip


@pytest.mark.parametrize(("family", "task"), ALL)
def test_auto_adapts_the_family_defaults(family: str, task: str) -> None:
    names = peft_model.lora_sites(adapted(family, task))

    assert {name.rsplit(".", 1)[-1] for name in names} == EXPECTED[family]
    assert len(names) == 2 * len(EXPECTED[family])


# Two layers with the attention projections and the two or three matrices of the feed-forward part; BERT has a pooler.
SITES = {"bert": 2 * 6 + 1, "roberta": 2 * 6, "distilbert": 2 * 6, "gpt2": 2 * 4, "llama": 2 * 7}


@pytest.mark.parametrize(("family", "task"), ALL)
def test_all_linear_excludes_head_and_output_layer(family: str, task: str) -> None:
    names = peft_model.lora_sites(adapted(family, task, "all-linear"))

    assert len(names) == SITES[family]
    assert not [name for name in names if name.startswith(("classifier", "pre_classifier", "score", "lm_head"))]


def test_all_linear_with_top_layers_only() -> None:
    names = peft_model.lora_sites(adapted("roberta", "sequence_classification", "all-linear", layers="top_1"))

    assert len(names) == 6
    assert all(".layer.1." in name for name in names)


def test_auto_with_an_unknown_family_raises_with_its_layers() -> None:
    model = OPTForCausalLM(OPT)
    model.config.model_type = "homemade"
    with pytest.raises(ModelError, match=r"'homemade', which have no default.* fc1, .*q_proj.*all-linear"):
        peft_model.attach(model, rank=2, lora_alpha=2, target_modules="auto", task="causal_lm")

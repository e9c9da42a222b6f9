"""Tests of the first-token optimization: same outputs and gradients with fewer positions in the last layer."""

import copy

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
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fedsvd.lora import peft_model
from fedsvd.lora.initialization import initialize_factors
from fedsvd.models.first_token import use_first_token_only
from fedsvd.privacy.grad_sample_modes import GradSampleMode, opacus_hooks, per_example_gradients
from fedsvd.training.per_example_gradients import fused_gradients

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
# Three texts, of lengths 6, 4 and 1.
IDS = torch.tensor([[2, 9, 8, 7, 6, 5], [3, 11, 12, 13, 0, 0], [4, 0, 0, 0, 0, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


class LastTokenBert(BertForSequenceClassification):
    """A BERT that classifies by the last token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert.pooler.forward = lambda states: torch.tanh(states[:, -1])  # type: ignore[method-assign]


def base(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**SIZES, pad_token_id=0))
    if kind == "gpt2":
        config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
        return GPT2ForSequenceClassification(config)
    if kind == "distilbert":
        config = DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
        return DistilBertForSequenceClassification(config)
    return (LastTokenBert if kind == "last token" else BertForSequenceClassification)(BertConfig(**SIZES))


def adapted(kind: str, targets: list[str]) -> peft.PeftModel:
    model = peft_model.attach(base(kind), rank=4, lora_alpha=16, target_modules=targets, head_modules=["classifier"])
    peft_model.write(model, initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="kaiming", seed=0))
    peft_model.set_trainable(model, {"B", "head"})
    return model.eval()


def losses(model: nn.Module, positions: object) -> Tensor:
    labels = torch.tensor([0, 1, 0])
    return nn.functional.cross_entropy(model(**INPUTS).logits, labels, reduction="none")


@pytest.mark.parametrize("targets", [["query", "value"], ["dense"]], ids=["attention", "after attention"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("per_example", [fused_gradients, opacus_hooks])
def test_outputs_and_per_example_gradients_are_unchanged(
    kind: str, targets: list[str], per_example: GradSampleMode
) -> None:
    plain = adapted(kind, targets)
    optimized = copy.deepcopy(plain)
    num_positions: list[int] = []
    intermediate = next(module for name, module in optimized.named_modules() if name.endswith("layer.1.intermediate"))
    intermediate.register_forward_hook(lambda module, args, output: num_positions.append(output.shape[1]))

    assert use_first_token_only(optimized)

    num_positions.clear()
    torch.testing.assert_close(optimized(**INPUTS).logits, plain(**INPUTS).logits)
    assert num_positions == [1]
    expected = per_example_gradients(plain, losses, [0, 1, 2], per_example)
    actual = per_example_gradients(optimized, losses, [0, 1, 2], per_example)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", ["gpt2", "distilbert", "last token"])
def test_unsuitable_model_is_left_unchanged(kind: str) -> None:
    model = base(kind).eval()
    before = model(**INPUTS).logits

    assert not use_first_token_only(model)

    assert torch.equal(model(**INPUTS).logits, before)
    assert not any(module._forward_pre_hooks for module in model.modules())

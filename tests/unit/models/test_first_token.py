"""A last layer that goes on with the first token alone: the same outputs and gradients, fewer positions."""

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
from fedsvd.privacy.dp_sgd import GradSampleMode, opacus_hooks, per_example_gradients
from fedsvd.training.per_example_gradients import fused_gradients

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
# Three texts, of lengths 6, 4 and 1.
IDS = torch.tensor([[2, 9, 8, 7, 6, 5], [3, 11, 12, 13, 0, 0], [4, 0, 0, 0, 0, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


class ReadsLastToken(BertForSequenceClassification):
    """A BERT whose classifier is not at the first token."""

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
    return (ReadsLastToken if kind == "last token" else BertForSequenceClassification)(BertConfig(**SIZES))


def adapted(kind: str, targets: list[str]) -> peft.PeftModel:
    model = peft_model.attach(base(kind), rank=4, lora_alpha=16, target_modules=targets, head_modules=["classifier"])
    peft_model.write(model, initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="kaiming", seed=0))
    peft_model.set_trainable(model, {"B", "head"})
    return model.eval()


def losses(model: nn.Module, positions: object) -> Tensor:
    labels = torch.tensor([0, 1, 0])
    return nn.functional.cross_entropy(model(**INPUTS).logits, labels, reduction="none")


@pytest.mark.parametrize("targets", [["query", "value"], ["dense"]], ids=["attention", "what follows"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("per_example", [fused_gradients, opacus_hooks])
def test_outputs_and_each_example_gradient_are_the_same(kind: str, targets: list[str], per_example: GradSampleMode) -> None:
    plain = adapted(kind, targets)
    short = copy.deepcopy(plain)
    positions: list[int] = []
    inner = next(module for name, module in short.named_modules() if name.endswith("layer.1.intermediate"))
    inner.register_forward_hook(lambda module, args, output: positions.append(output.shape[1]))

    assert use_first_token_only(short)

    positions.clear()
    torch.testing.assert_close(short(**INPUTS).logits, plain(**INPUTS).logits)
    assert positions == [1]
    expected = per_example_gradients(plain, losses, [0, 1, 2], per_example)
    found = per_example_gradients(short, losses, [0, 1, 2], per_example)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["gpt2", "distilbert", "last token"])
def test_a_model_that_it_does_not_fit_is_left_as_it_was(kind: str) -> None:
    model = base(kind).eval()
    before = model(**INPUTS).logits

    assert not use_first_token_only(model)

    assert torch.equal(model(**INPUTS).logits, before)
    assert not any(module._forward_pre_hooks for module in model.modules())

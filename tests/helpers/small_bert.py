"""A small BERT with LoRA factors, and random examples for it."""

from collections.abc import Callable, Sequence

import peft
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Part
from fedsvd.lora.initialization import initialize_factors
from fedsvd.training.objectives import Labels, make_objective

NUM_EXAMPLES = 12


def make_model(
    parts: set[Part], num_labels: int = 2, task: str = "sequence_classification"
) -> tuple[peft.PeftModel, list[nn.Parameter]]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=num_labels,
    )  # fmt: skip
    model = peft_model.attach(
        BertForTokenClassification(config) if task == "token_classification" else BertForSequenceClassification(config),
        rank=4,
        lora_alpha=16,
        target_modules=["query", "value"],
        head_modules=["classifier"],
        task=task,
    )
    peft_model.write(model, initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="kaiming", seed=0))
    return model, peft_model.set_trainable(model, parts)


def make_losses(class_weights: Sequence[float] | None = None) -> Callable[[nn.Module, Sequence[int]], Tensor]:
    """Return a loss function over fixed examples of different lengths, so that every batch contains padding."""
    generator = torch.Generator().manual_seed(1)
    lengths = [3 + i % 5 for i in range(NUM_EXAMPLES)]
    rows = [torch.randint(1, 50, (length,), generator=generator) for length in lengths]
    labels = torch.randint(0, 2, (NUM_EXAMPLES,), generator=generator)

    def losses(model: nn.Module, positions: Sequence[int]) -> Tensor:
        longest = max(len(rows[i]) for i in positions)
        ids = torch.stack([nn.functional.pad(rows[i], (0, longest - len(rows[i]))) for i in positions])
        batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels[list(positions)]}
        return make_objective("sequence_classification", Labels(class_weights=class_weights)).losses(model, batch)

    return losses


def single_example_gradients(model: nn.Module, trained: list[nn.Parameter], position: int) -> list[Tensor]:
    """Return the gradients of one example, computed on its own."""
    return list(torch.autograd.grad(make_losses()(model, [position]).sum(), trained))

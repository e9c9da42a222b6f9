"""Losses of a client's rows: a conversation is one example, whatever its number of turns."""

import json
from pathlib import Path

import pytest
import torch
from chat_model import save_chat_model
from torch.nn import functional

from fedsvd.config.compose import compose
from fedsvd.lora import peft_model
from fedsvd.privacy.grad_sample_modes import per_example_gradients
from fedsvd.runtime.data import load_client_data
from fedsvd.runtime.losses import clear_caches, per_example_losses
from fedsvd.runtime.model import load_model
from fedsvd.training.per_example_gradients import fused_gradients

TURNS = [
    {"role": "user", "content": "how was the film"},
    {"role": "assistant", "content": "dull"},
    {"role": "user", "content": "and the end of it"},
    {"role": "assistant", "content": "worse than that"},
]


@pytest.mark.slow
def test_the_gradient_of_a_conversation_is_that_of_the_mean_over_its_assistant_tokens(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": TURNS[: 2 + 2 * (i % 2)]}) + "\n" for i in range(6)))
    config = compose(
        ["experiment=smoke", "model=tiny_llama", f"model.source={save_chat_model(tmp_path / 'model')}", "data=jsonl",
         f"data.path={path}", "data.messages_column=messages", "data.label_column=null", "partition=iid",
         "federation.num_clients=1", "partition.min_partition_size=1"]
    )  # fmt: skip
    data, model = load_client_data(config, 0), load_model(config)
    trained = peft_model.set_trainable(model, {"A", "B"})
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    names = {parameter: name for name, parameter in model.named_parameters()}

    gradients = per_example_gradients(
        model, per_example_losses(data, config), range(len(data.examples)), fused_gradients
    )

    lengths = set()
    for position, example in enumerate(data.examples):
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])
        lengths.add(int((labels != -100).sum()))
        loss = functional.cross_entropy(model(input_ids=ids).logits[0, :-1], labels[1:], ignore_index=-100)
        expected = torch.autograd.grad(loss, trained)
        for parameter, gradient in zip(trained, expected, strict=True):
            assert gradient.abs().max() > 0
            torch.testing.assert_close(gradients[names[parameter]][position], gradient, atol=1e-5, rtol=1e-4)
    # One turn of one word, and two turns of four words together, each with its end-of-turn token.
    assert lengths == {2, 6}
    clear_caches()

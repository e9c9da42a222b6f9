"""Runs over model families: private training, per-example gradients, prediction and exports of each architecture."""

from collections.abc import Sequence
from pathlib import Path

import peft
import pytest
import torch
from families import DECODERS, ENCODERS, save_checkpoint
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from fedsvd import data
from fedsvd.cli import main
from fedsvd.lora import peft_model
from fedsvd.privacy.dp_sgd import per_example_gradients
from fedsvd.runs.folder import read_rows
from fedsvd.runtime.data import load_client_data, load_tokenizer
from fedsvd.runtime.model import clear_model_cache, load_model
from fedsvd.trained.run import load_trained_model, predict, read_run
from fedsvd.training.loop import example_losses
from fedsvd.training.per_example_gradients import choose_grad_sample_mode

TEXTS = ["A fine film.", "Dull, dull, dull, and far too long for what it has to say."]
# XLNet puts the position before the example: see test_models_as_they_come.py.
PRIVATE = [name for name in [*ENCODERS, *DECODERS] if name != "xlnet"]
FAST = ("mpnet", "qwen3")


def arguments(family: str, source: str) -> list[str]:
    encoder = ["model=tiny", "model.pooling=stock", "model.target_modules=auto", "train.head=private"]
    task = encoder if family in ENCODERS else ["model=tiny_llama"]
    return [
        "experiment=smoke", *task, f"model.source={source}", "model.rank=2", "model.max_length=24", "partition=iid",
        "data.max_train_examples=60", "data.max_test_examples=20", "train.num_rounds=1", "plots=false",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in PRIVATE]
)
def test_family_trains_privately_predicts_and_exports(family: str, tmp_path: Path) -> None:
    clear_model_cache()
    source, folder = save_checkpoint(family, tmp_path / "base"), tmp_path / "run"
    assert main(["train", *arguments(family, source), f"hydra.run.dir={folder}"]) == 0
    [_, row] = read_rows(folder / "metrics.jsonl")
    assert row["epsilon"] > 0
    assert row["clients_used"] == 2

    check_gradients(folder)

    run = read_run(folder)
    loaded = load_trained_model(run)
    assert len(list(predict(loaded, TEXTS))) == 2
    for kind, flags in {"merged": ["--merge"], "adapter": []}.items():
        assert main(["export", str(folder), "--to", str(tmp_path / kind), *flags]) == 0
    auto = AutoModelForCausalLM if run.generates_text else AutoModelForSequenceClassification
    merged = auto.from_pretrained(tmp_path / "merged").eval()
    options = {} if run.generates_text else {"config": AutoConfig.from_pretrained(tmp_path / "adapter" / "config")}
    adapter = peft.PeftModel.from_pretrained(auto.from_pretrained(source, **options), tmp_path / "adapter").eval()
    expected = logits(loaded.model, loaded.tokenizer)
    assert expected.std() > 1e-3
    for exported in (merged, adapter):
        torch.testing.assert_close(logits(exported, loaded.tokenizer), expected, atol=1e-4, rtol=1e-4)


def logits(model: nn.Module, tokenizer: object) -> Tensor:
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")  # type: ignore[operator]
    mask = batch["attention_mask"]
    with torch.no_grad():
        values: Tensor = model(input_ids=batch["input_ids"], attention_mask=mask).logits
    return values[mask.bool()] if values.dim() == 3 else values


def check_gradients(folder: Path) -> None:
    """Compare the gradients of a batch of a client's examples with a loop over single examples."""
    config = read_run(folder).config
    model, examples, tokenizer = load_model(config), load_client_data(config, 0).examples, load_tokenizer(config)
    trained = peft_model.set_trainable(model, ["A", "B", "head"])
    names = {parameter: name for name, parameter in model.named_parameters()}

    def losses(module: nn.Module, positions: Sequence[int]) -> Tensor:
        return example_losses(module, data.collate([examples[i] for i in positions], tokenizer))

    positions = [0, 5, 9, 20, 29]
    model.train()
    gradients = per_example_gradients(model, losses, positions, choose_grad_sample_mode(model, "auto"))
    assert len(gradients) == len(trained)
    for row, position in enumerate(positions):
        expected = torch.autograd.grad(losses(model, [position]).sum(), trained)
        for parameter, gradient in zip(trained, expected, strict=True):
            scale = max(gradient.abs().max().item(), 1e-3)
            torch.testing.assert_close(gradients[names[parameter]][row], gradient, atol=1e-4 * scale, rtol=1e-3)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3

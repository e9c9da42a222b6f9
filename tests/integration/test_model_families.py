"""Runs over model families: private training, per-example gradients, prediction and exports of each architecture."""

import json
from collections.abc import Sequence
from pathlib import Path

import peft
import pytest
import torch
from families import DECODERS, ENCODERS, save_checkpoint
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline

import fedsvd
from fedsvd import data
from fedsvd.cli import main
from fedsvd.lora import peft_model
from fedsvd.privacy.grad_sample_modes import per_example_gradients
from fedsvd.runs.folder import read_rows
from fedsvd.runtime.data import load_client_data, load_tokenizer
from fedsvd.runtime.model import clear_model_cache, load_model
from fedsvd.trained.prediction import class_logits, predict, unlabeled_dataset
from fedsvd.trained.run import load_trained_model, read_run
from fedsvd.training.objectives import make_objective
from fedsvd.training.per_example_gradients import choose_grad_sample_mode

TASK = ("negative", "positive")
TEXTS = ["A fine film.", "Dull, dull, dull, and far too long for what it has to say."]
# XLNet puts the position before the example: see below.
PRIVATE = [name for name in [*ENCODERS, *DECODERS] if name != "xlnet"]
FAST = ("mpnet", "qwen3")
# Its output layer, which shares its weight with the token embeddings, is adapted.
TIED = "qwen2"


def arguments(family: str, source: str) -> list[str]:
    encoder = ["model=tiny", "model.pooling=stock", "model.target_modules=auto", "train.head=private"]
    decoder = ["model=tiny_llama", *(["model.target_modules=[q_proj,lm_head]"] if family == TIED else [])]
    task = encoder if family in ENCODERS else decoder
    return [
        "experiment=smoke", *task, f"model.source={source}", "model.rank=2", "model.max_length=24", "partition=iid",
        "data.max_train_examples=60", "data.max_test_examples=20", "train.num_rounds=1", "plots=false",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in PRIVATE]
)
def test_family_trains_privately_predicts_and_exports(family: str, tmp_path: Path) -> None:
    clear_model_cache()
    source, folder = save_checkpoint(family, tmp_path / "base"), tmp_path / "run"
    fedsvd.train(*arguments(family, source), run_dir=folder)
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
    # As the model card says.
    if run.generates_text:
        adapter = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    else:
        classes = AutoConfig.from_pretrained(tmp_path / "adapter" / "config")
        adapter = auto.from_pretrained(tmp_path / "adapter", config=classes)
        assert adapter.config.id2label == merged.config.id2label == {0: "negative", 1: "positive"}
    adapter.eval()
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

    objective = make_objective(config.model.task)

    def losses(module: nn.Module, positions: Sequence[int]) -> Tensor:
        return objective.losses(module, data.collate([examples[i] for i in positions], tokenizer))

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


@pytest.mark.slow
def test_a_checkpoint_with_a_head_is_continued_under_its_own_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_checkpoint("electra", tmp_path / "base", "classifier", id2label={0: "POSITIVE", 1: "NEGATIVE"})
    folder = tmp_path / "run"
    settings = [item for item in arguments("electra", source) if item != "model.pooling=stock"]
    assert main(["train", *settings, "train.trains=none", f"hydra.run.dir={folder}"]) == 0
    output = capsys.readouterr().out
    assert output.count("head: the checkpoint's, whose classes have these names") == 1
    assert "what the checkpoint's classification head reads" in output
    assert json.loads((folder / "run.json").read_text())["checkpoint_head"].startswith("the checkpoint's")

    run = read_run(folder)
    original = AutoModelForSequenceClassification.from_pretrained(source).eval()
    loaded = load_trained_model(run)
    expected = logits(original, loaded.tokenizer)[:, [1, 0]]
    torch.testing.assert_close(class_logits(loaded, unlabeled_dataset(TEXTS, None, run.classes)), expected)
    # The names of the checkpoint, in its order, would be those of the opposite classes.
    assert main(["export", str(folder), "--to", str(tmp_path / "adapter")]) == 0
    classify = pipeline("text-classification", model=str(tmp_path / "adapter"))
    assert [row["label"] for row in classify(TEXTS)] == [TASK[index] for index in expected.argmax(-1)]


@pytest.mark.slow
def test_what_an_architecture_does_not_allow_is_refused_before_anything_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xlnet = arguments("xlnet", save_checkpoint("xlnet", tmp_path / "xlnet"))
    opt = arguments("opt", save_checkpoint("opt", tmp_path / "opt", max_position_embeddings=40))
    bloom = arguments("bloom", save_checkpoint("bloom", tmp_path / "bloom"))
    factors = [*xlnet, "model.target_modules=[layer_1,layer_2]"]
    refusals = {
        "'xlnet', which have no default": xlnet,
        "layer_1, layer_2 of model.target_modules process the tokens of all": [*factors, "model.pooling=mean"],
        "change with the padding of a text": factors,
        "privacy=dp_sgd is not possible: fc1, fc2 of": [*opt, "model.target_modules=all-linear"],
        "max_length = 41 is invalid": [*opt, "model.max_length=41"],
        "train.packing = true is not possible": [*bloom, "train.packing=true", "privacy=none"],
        "max_length = 2 leaves no room for a text": [*factors, "model.pooling=mean", "model.max_length=2"],
        "device = 'mps' is not supported: torch has no float64 there": [*opt, "device=mps"],
        "device = 'banana' is invalid": [*opt, "device=banana"],
    }
    for number, (message, overrides) in enumerate(refusals.items()):
        folder = tmp_path / str(number)
        assert main(["train", *overrides, f"hydra.run.dir={folder}"]) in (1, 2), message
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
        assert not list(folder.glob("clients/*"))
    head = [*factors, "model.pooling=mean", "train.trains=head"]
    plain = [*factors, "model.pooling=mean", "privacy=none"]
    for name, overrides in {"head": head, "plain": plain}.items():
        fedsvd.train(*overrides, run_dir=tmp_path / name)
        assert len(list(predict(load_trained_model(read_run(tmp_path / name)), TEXTS))) == 2

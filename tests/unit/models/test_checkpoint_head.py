"""A checkpoint's classification head: kept where its classes fit, replaced by a new one otherwise."""

from pathlib import Path

import pytest
import torch
from families import logits, save_checkpoint
from transformers import AutoModelForSequenceClassification

from fedsvd.config import ModelConfig
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, ModelError
from fedsvd.models.checkpoint_head import KeptHead
from fedsvd.models.head_choice import choose_head
from fedsvd.models.loading import load_base, load_classifier
from fedsvd.models.pooling import choose_pooling

TASK = ("negative", "positive")


def checkpoint(folder: Path, *names: str, family: str = "electra") -> str:
    return save_checkpoint(family, folder, "classifier", id2label=dict(enumerate(names)))


def config(source: str, **settings: object) -> ModelConfig:
    return ModelConfig("own", source, **{"pooling": "auto", "attn_implementation": "auto", **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["electra", "mpnet", "deberta-v2", "qwen2"])
def test_a_head_with_the_names_of_the_classes_is_kept_in_their_order(family: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path, "POSITIVE", "Negative", family=family)
    original = AutoModelForSequenceClassification.from_pretrained(source)

    choice = choose_head(config(source), TASK, "auto")
    assert choice.kept == KeptHead((1, 0))
    assert "these names" in choice.summary
    assert choose_pooling(config(source), keeps_head=True).is_stock
    model, head = load_base(config(source), 2, 0, choice.kept)

    assert torch.equal(logits(model), logits(original)[:, [1, 0]])
    kept = {name for name, _ in model.named_parameters() if any(name.startswith(f"{module}.") for module in head)}
    assert kept == {name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")}


def test_a_head_of_other_classes_is_replaced_and_by_number_is_a_setting(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, "LABEL_0", "LABEL_1")

    choice = choose_head(config(source), TASK, "auto")
    assert choice.kept is None
    assert "classes are LABEL_0, LABEL_1; train.head_init=checkpoint keeps it by number" in choice.summary
    kept = choose_head(config(source), TASK, "checkpoint")
    assert kept.kept == KeptHead((0, 1))
    assert "LABEL_0 as negative, LABEL_1 as positive" in kept.summary
    with pytest.raises(ModelError, match=r"has 2 classes \(LABEL_0, LABEL_1\), the data have 3 \(a, b, c\)"):
        choose_head(config(source), ("a", "b", "c"), "checkpoint")
    assert choose_head(config(source), ("LABEL_0", "LABEL_1"), "random").kept is None


def test_a_new_head_is_the_one_that_a_checkpoint_without_head_gets(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "classifier", "a", "b", "c")
    model = AutoModelForSequenceClassification.from_pretrained(source)
    model.base_model.save_pretrained(tmp_path / "base")
    load_classifier("embedded:tiny", num_labels=2, seed=0)

    replaced, head = load_base(config(source, pooling="stock"), 2, 7)
    expected, expected_head = load_base(config(str(tmp_path / "base"), pooling="stock"), 2, 7)

    assert head == expected_head == ["classifier"]
    assert logits(replaced).shape == (2, 2)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, replaced.state_dict()[name]), name
    # The renaming under which the head was left out has no effect on what is saved.
    replaced.save_pretrained(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(replaced))


def test_features_that_were_chosen_explicitly_get_a_new_head(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, *TASK)

    assert choose_head(config(source), TASK, "auto").kept == KeptHead((0, 1))
    for settings in ({"pooling": "mean"}, {"pooling_layer": 1}, {"standardize": "public"}):
        choice = choose_head(config(source, **settings), TASK, "auto")
        assert choice.kept is None
        assert "reads other features" in choice.summary
    with pytest.raises(ConfigError, match=r"head_init = checkpoint is not possible with model.pooling = mean"):
        compose(["experiment=smoke", "train.head_init=checkpoint", "model.pooling=mean"])


def test_a_checkpoint_without_a_head_has_nothing_to_say() -> None:
    choice = choose_head(config("embedded:tiny"), TASK, "auto")
    assert (choice.kept, choice.summary) == (None, "")
    with pytest.raises(ModelError, match=r"head_init = checkpoint .*'embedded:tiny' has no classification head"):
        choose_head(config("embedded:tiny"), TASK, "checkpoint")

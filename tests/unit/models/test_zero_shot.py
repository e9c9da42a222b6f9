"""Heads from descriptions of the classes: by hand, from the configuration, and errors."""

import pytest
import torch
from torch import nn

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, ModelError
from fedsvd.methods import build_run_method
from fedsvd.models.zero_shot import WEIGHT_NORM, sentences_by_class, zero_shot_head
from fedsvd.runtime.data import class_names
from fedsvd.runtime.model import clear_model_cache, initial_adapter

RUN = ["experiment=smoke", "model.pooling=mean", "train.head=private"]


class Encoder(nn.Module):
    """Features by sentence, instead of a transformer."""

    device = torch.device("cpu")

    def features(self, text: str) -> torch.Tensor:
        return torch.tensor([{"a": [1.0, 0.0], "b": [3.0, 0.0], "c": [0.0, 4.0]}[text]])


class Tokenizer:
    def __call__(self, text: str, **_: object) -> "Tokenizer":
        self.text = text
        return self

    def to(self, device: torch.device) -> dict[str, str]:
        return {"text": self.text}


def test_the_head_has_the_directions_of_the_class_means() -> None:
    weight, bias = zero_shot_head(Encoder(), Tokenizer(), [["a", "b"], ["c"]], 8)  # type: ignore[arg-type]

    # Means (2, 0) and (0, 4), their mean (1, 2): directions (1, -2) and (-1, 2), of norm √5.
    scale = WEIGHT_NORM / 5**0.5
    torch.testing.assert_close(weight, scale * torch.tensor([[1.0, -2.0], [-1.0, 2.0]]))
    assert bias.tolist() == [0.0, 0.0]


def test_the_head_of_a_regression_maps_both_means_one_apart() -> None:
    weight, bias = zero_shot_head(Encoder(), Tokenizer(), [["a", "b"], ["c"]], 8, is_regression=True)  # type: ignore[arg-type]

    # d = (0, 4) - (2, 0) = (-2, 4), of squared norm 20.
    torch.testing.assert_close(weight, torch.tensor([[-0.1, 0.2]]))
    assert bias.tolist() == [0.5]


def test_a_regression_describes_the_ends_of_its_range() -> None:
    own = [*RUN, "model.task=regression", "train.head_init=zero_shot", "partition=iid"]
    config = compose([*own, "data.min_abs_rating=0", "data.label_range=[-4,4]"])
    assert initial_adapter(config, build_run_method(config)).head["classifier.weight"].shape[0] == 1
    with pytest.raises(ConfigError, match=r"needs data\.label_range with model\.task = regression"):
        compose(own)
    three = compose([*own, "data.label_range=[-4,4]", "data.class_descriptions=[['a'],['b'],['c']]"])
    with pytest.raises(ConfigError, match="expected 2, one for each of the lowest label, the highest label"):
        initial_adapter(three, build_run_method(three))


def test_descriptions_by_name_or_in_order() -> None:
    assert sentences_by_class({"b": ("x",), "a": ("y", "z")}, ["a", "b"]) == [["y", "z"], ["x"]]
    assert sentences_by_class((("y",), ("x",)), ["a", "b"]) == [["y"], ["x"]]
    with pytest.raises(ConfigError, match=r"describes the classes a, c: expected sentences of a, b"):
        sentences_by_class({"a": ("y",), "c": ("x",)}, ["a", "b"])
    with pytest.raises(ConfigError, match=r"has 1 lists of sentences: expected 2, one for each of a, b"):
        sentences_by_class((("y",),), ["a", "b"])


def test_every_process_computes_the_same_head_which_depends_on_the_sentences() -> None:
    config = compose([*RUN, "train.head_init=zero_shot"])
    other = compose([*RUN, "train.head_init=zero_shot", "data.class_descriptions=[['no'],['yes','oh yes']]"])
    method = build_run_method(config)
    first = initial_adapter(config, method).head
    clear_model_cache()
    again, different = initial_adapter(config, method).head, initial_adapter(other, method).head

    assert first.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], different["classifier.weight"])


def test_other_initializations_of_the_head() -> None:
    drawn, zeros = (
        initial_adapter(config, build_run_method(config)).head
        for config in (compose(RUN), compose([*RUN, "train.head_init=zeros"]))
    )
    assert drawn["classifier.weight"].any()
    assert not any(tensor.any() for tensor in zeros.values())
    stock = compose(
        ["experiment=smoke", "model=tiny_roberta", "model.pooling=stock", "train.head=private", "train.head_init=zeros"]
    )
    head = initial_adapter(stock, build_run_method(stock)).head
    assert {name for name, tensor in head.items() if not tensor.any() and "weight" in name} == {
        "classifier.out_proj.weight"
    }


@pytest.mark.slow
def test_descriptions_of_embedded_data_have_one_list_per_class() -> None:
    for name in ("movie_reviews", "sentiment_domains", "bbc_news", "reuters_r8", "newsgroups"):
        config = compose([f"data={name}"])
        assert config.data.class_descriptions is not None
        assert len(config.data.class_descriptions) == len(class_names(config))


def test_a_stock_head_has_no_zero_shot_directions() -> None:
    config = compose(["experiment=smoke", "model.pooling=first", "train.head_init=zero_shot"])
    with pytest.raises(ModelError, match=r"train\.head_init = zero_shot is not possible"):
        initial_adapter(config, build_run_method(config))

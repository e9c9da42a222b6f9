"""The setting ``model.pooling``: which tokens are read, and what ``auto`` chooses for a checkpoint."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, T5Config, T5Model
from transformers.utils import logging as transformers_logging

from fedsvd.config import ModelConfig
from fedsvd.errors import ConfigError, ModelError
from fedsvd.models.embedded import quiet_transformers
from fedsvd.models.pooled import pool
from fedsvd.models.pooling import choose_pooling, is_untrained_pooler

STATES = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [8.0, 80.0]]])


@pytest.mark.parametrize(
    ("pooling", "mask", "expected"),
    [
        ("mean", [1, 1, 0], [2.0, 20.0]),
        ("mean", [0, 1, 1], [5.5, 55.0]),
        ("first", [1, 1, 0], [1.0, 10.0]),
        ("first", [0, 1, 1], [3.0, 30.0]),
        ("last", [1, 1, 0], [3.0, 30.0]),
        ("last", [0, 1, 1], [8.0, 80.0]),
    ],
)
def test_padding_on_either_side_does_not_count(pooling: str, mask: list[int], expected: list[float]) -> None:
    assert pool(STATES, torch.tensor([mask]), pooling).tolist() == [expected]


def test_undefined_states_at_padding_do_not_matter() -> None:
    states = STATES.clone()
    states[0, 2] = torch.nan

    assert pool(states, torch.tensor([[1, 1, 0]]), "mean").tolist() == [[2.0, 20.0]]


def bert(folder: Path, *, trained: bool = False, pooler: bool = True) -> str:
    torch.manual_seed(0)
    sizes = BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    model = BertModel(sizes, add_pooling_layer=pooler)
    if trained:
        # One direction that stands out, as training leaves them.
        model.pooler.dense.weight.data += 0.02 * torch.outer(torch.randn(64), torch.randn(64))
    with quiet_transformers():
        model.save_pretrained(folder)
    return str(folder)


def config(source: str, **settings: object) -> ModelConfig:
    return ModelConfig("own", source, **{"pooling": "auto", **settings})  # type: ignore[arg-type]


def test_auto_reads_the_first_token_through_a_trained_pooler(tmp_path: Path) -> None:
    choice = choose_pooling(config(bert(tmp_path, trained=True)))

    assert (choice.pooling, choice.is_stock) == ("first", True)
    assert "trained pooler" in choice.reason


def test_auto_does_not_use_an_untrained_pooler_or_a_missing_one(tmp_path: Path) -> None:
    for folder, pooler, reason in (("random", True, "never trained"), ("none", False, "no pooler")):
        choice = choose_pooling(config(bert(tmp_path / folder, pooler=pooler)))
        assert (choice.pooling, choice.is_stock) == ("mean", False)
        assert reason in choice.reason


def test_a_layer_below_the_last_has_no_pooler(tmp_path: Path) -> None:
    source = bert(tmp_path, trained=True)

    assert choose_pooling(config(source, pooling_layer=2)).pooling == "mean"
    # The last layer by its number is the last layer.
    assert choose_pooling(config(source, pooling_layer=3)).pooling == "first"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_auto_follows_a_sentence_encoders_own_file(settings: dict[str, object], expected: str, tmp_path: Path) -> None:
    source = bert(tmp_path, trained=True)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))

    choice = choose_pooling(config(source))

    assert (choice.pooling, choice.is_stock) == (expected, False)
    assert "1_Pooling/config.json" in choice.reason


def test_a_pooling_that_is_not_supported_is_ignored(tmp_path: Path) -> None:
    source = bert(tmp_path, trained=True)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')

    assert "trained pooler" in choose_pooling(config(source)).reason


def test_auto_reads_the_last_token_of_a_causal_model(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)).save_pretrained(tmp_path)

    assert choose_pooling(config(str(tmp_path))).is_stock
    choice = choose_pooling(config(str(tmp_path), pooling_layer=1))
    assert (choice.pooling, choice.layer, choice.is_stock) == ("last", 1, False)


def test_an_explicit_value_is_stock_only_where_the_stock_class_does_the_same(tmp_path: Path) -> None:
    source = bert(tmp_path)

    assert choose_pooling(config(source, pooling="first")).is_stock
    assert choose_pooling(config(source, pooling="stock")).is_stock
    assert not choose_pooling(config(source, pooling="first", pooling_layer=2)).is_stock
    assert not choose_pooling(config(source, pooling="first", standardize="public")).is_stock
    assert not choose_pooling(config(source, pooling="mean")).is_stock


def test_the_choice_and_its_reason_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = config(bert(tmp_path))
    with caplog.at_level(logging.INFO, "fedsvd"):
        choose_pooling(settings)
        choose_pooling(settings)

    assert [record.getMessage() for record in caplog.records] == [
        f"pooling of {tmp_path}: mean of all tokens of the last layer (auto: the checkpoint's pooler was never "
        "trained: its weights are random)"
    ]


def test_minilms_pooler_is_recognized_as_untrained_and_its_pooling_file_found() -> None:
    from fedsvd.models.pooling import _pooler

    pooler = _pooler("embedded:minilm")
    assert pooler is not None
    assert is_untrained_pooler(pooler)
    assert "names mean" in choose_pooling(config("embedded:minilm")).reason


@pytest.mark.parametrize("width", [32, 384, 768])
@pytest.mark.parametrize("seed", range(3))
def test_random_poolers_are_untrained(width: int, seed: int) -> None:
    torch.manual_seed(seed)
    for init in (nn.init.normal_, nn.init.xavier_uniform_):
        dense = nn.Linear(width, width)
        init(dense.weight)
        nn.init.zeros_(dense.bias)
        assert is_untrained_pooler(dense)


def test_a_bias_or_a_leading_direction_shows_training() -> None:
    torch.manual_seed(0)
    with_bias, with_direction = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
    nn.init.normal_(with_direction.weight, std=0.02)
    u = nn.functional.normalize(torch.randn(64), dim=0)
    assert is_untrained_pooler(with_direction)
    # The edge is 0.02 · 2 · √64 = 0.32.
    with_direction.weight.data += 0.6 * torch.outer(u, u)

    assert not is_untrained_pooler(with_bias)
    assert not is_untrained_pooler(with_direction)


def test_layers_that_do_not_exist_are_rejected(tmp_path: Path) -> None:
    source = bert(tmp_path)

    with pytest.raises(ModelError, match=r"pooling_layer = 4 is invalid: .* has 3 layers; expected last, or 1 to 3"):
        choose_pooling(config(source, pooling_layer=4))
    with pytest.raises(
        ModelError, match=r"lora_layers = top_3 is invalid with model\.pooling_layer = 2: .*top_1 to top_2"
    ):
        choose_pooling(config(source, pooling_layer=2, lora_layers="top_3"))


def test_an_encoder_decoder_has_its_stock_class_only(tmp_path: Path) -> None:
    transformers_logging.disable_progress_bar()
    sizes = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5Model(sizes).save_pretrained(tmp_path)

    assert choose_pooling(config(str(tmp_path))).is_stock
    with pytest.raises(ModelError, match=r"encoder-decoder model.*model\.pooling=stock"):
        choose_pooling(config(str(tmp_path), pooling="mean"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "causal_lm", "pooling": "mean"}, r"pooling = mean is not possible with model\.task = causal_lm"),
        ({"task": "causal_lm", "pooling_layer": 1}, r"pooling_layer = 1 is not possible"),
        ({"pooling": "stock", "standardize": "public"}, r"standardize = public is not possible"),
        ({"pooling_layer": 0}, "expected last, or the number of a layer"),
        ({"pooling": "max"}, "expected one of auto, first, mean, last, stock"),
    ],
)
def test_settings_without_effect_are_rejected(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config("embedded:tiny", **settings)

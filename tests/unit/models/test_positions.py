"""The limit on ``model.max_length`` by the positions of a model, and attention implementations that a model lacks."""

from pathlib import Path

import pytest
import torch
from families import save_checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedModel

from fedsvd.config import ModelConfig
from fedsvd.errors import ModelError
from fedsvd.models.load_options import LoadOptions
from fedsvd.models.loading import load_base, load_causal_lm, load_classifier
from fedsvd.models.pooled_loading import load_pooled
from fedsvd.models.pooling import PoolingChoice
from fedsvd.models.positions import position_limit

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
         "max_position_embeddings": 20, "pad_token_id": 1}  # fmt: skip


def model(family: str, **settings: object) -> PreTrainedModel:
    sizes = {**SIZES, **settings}
    if family == "xlnet":
        del sizes["max_position_embeddings"]
        sizes["d_head"] = 8
    made: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(family, **sizes))
    return made.eval()


@pytest.mark.parametrize(
    ("family", "settings", "limit"),
    [
        ("bert", {}, 20),
        ("roberta", {}, 18),
        ("mpnet", {}, 18),
        ("distilbert", {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16}, 20),
        ("gpt2", {}, 20),
        ("opt", {"ffn_dim": 16, "word_embed_proj_dim": 16}, 20),
        ("gptj", {"rotary_dim": 4}, 20),
        ("nystromformer", {"num_landmarks": 2, "segment_means_seq_len": 2}, 20),
    ],
)
def test_the_limit_is_the_longest_text_that_the_model_takes(family: str, settings: dict[str, int], limit: int) -> None:
    made = model(family, **settings)

    assert position_limit(made) == limit
    ids = torch.full((1, limit + 1), 7)
    with torch.no_grad():
        made(input_ids=ids[:, :limit])
        if family != "nystromformer":
            with pytest.raises((IndexError, RuntimeError)):
                made(input_ids=ids)


@pytest.mark.parametrize("family", ["llama", "bloom", "deberta-v2", "xlnet", "modernbert"])
def test_relative_and_rotary_positions_have_no_limit(family: str) -> None:
    settings = {"relative_attention": True, "position_biased_input": False} if family == "deberta-v2" else {}
    made = model(family, **settings)

    assert position_limit(made) is None
    with torch.no_grad():
        made(input_ids=torch.full((1, 25), 7))


def test_longer_texts_are_refused_before_the_model_is_used() -> None:
    for config in (ModelConfig("own", "embedded:tiny", max_length=129), ModelConfig("own", "embedded:tiny")):
        if config.max_length <= 128:
            assert load_base(config, 2, 0)
            continue
        with pytest.raises(ModelError, match=r"max_length = 129 .* positions for 128 tokens; expected 1 to 128"):
            load_base(config, 2, 0)
        with pytest.raises(ModelError, match="expected 1 to 128"):
            load_pooled(config, PoolingChoice("mean", None, False, ""), 2, 0)


def test_auto_attention_takes_what_the_architecture_has(tmp_path: Path) -> None:
    mpnet, gemma = save_checkpoint("mpnet", tmp_path / "mpnet"), save_checkpoint("gemma2", tmp_path / "gemma2")

    assert load_classifier(mpnet, num_labels=2, seed=0).model.config._attn_implementation == "eager"
    assert load_causal_lm(gemma).model.config._attn_implementation == "eager"
    assert load_classifier("embedded:tiny", num_labels=2, seed=0).model.config._attn_implementation == "sdpa"
    loaders = (
        lambda: load_classifier(mpnet, num_labels=2, seed=0, options=LoadOptions("sdpa")),
        lambda: load_causal_lm(gemma, LoadOptions("sdpa")),
        lambda: load_pooled(ModelConfig("own", mpnet), PoolingChoice("mean", None, False, ""), 2, 0),
    )
    for load in loaders:
        with pytest.raises(ModelError, match=r"attn_implementation = sdpa is not possible .*auto or eager"):
            load()

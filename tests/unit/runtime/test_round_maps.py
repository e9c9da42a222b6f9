"""The maps of a real round: the public mean gradient, compared with automatic differentiation text by text."""

import pytest
import torch

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.lora import peft_model
from fedsvd.methods import build_run_method
from fedsvd.models.loading import load_tokenizer
from fedsvd.privacy.gradient_maps import Projection
from fedsvd.runtime import losses, public_mean
from fedsvd.runtime.model import initial_adapter, load_model
from fedsvd.runtime.round_maps import round_maps

RUN = ["experiment=smoke", "train.head=private", "privacy.project_public_mean=true"]


@pytest.mark.slow
def test_the_projection_removes_the_mean_gradient_of_public_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_mean, "MAX_TEXTS", 3)
    public_mean._public_inputs.cache_clear()
    losses.clear_caches()
    config = compose(RUN)
    model = load_model(config)
    peft_model.write(model, initial_adapter(config, build_run_method(config)))

    (projection,) = round_maps(config, model, {"B", "head"})
    public_mean._public_inputs.cache_clear()

    assert isinstance(projection, Projection)
    factors = [site.B for site in peft_model.lora_sites(model).values()]
    assert projection.directions.keys() == {id(factor) for factor in factors}
    texts = public_mean.spread(public_mean.load_public_corpus(config.model.public_text).texts, 3)
    tokenizer, mean = load_tokenizer(config.model.source), 0
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=config.model.max_length, return_tensors="pt")
        logits = model(**encoded).logits[0]
        gradients = torch.autograd.grad(logits[0] - logits[1], factors)
        mean = mean + torch.cat([gradient.reshape(-1) for gradient in gradients]) / 3
    direction = torch.cat([projection.directions[id(factor)].reshape(-1) for factor in factors])
    assert abs(torch.nn.functional.cosine_similarity(direction, mean, dim=0).item()) > 1 - 1e-5
    assert round_maps(config, model, {"head"}) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy=client_level"], "clips no example's gradient"),
        (["data=bbc_news"], "private data are the same text"),
        (["model.task=causal_lm", "train.head=frozen"], "does not have one of several classes"),
    ],
)
def test_settings_without_a_public_mean_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([*RUN, *overrides])

"""The maps of a real round: the public mean gradient, compared with automatic differentiation text by text."""

from pathlib import Path

import pytest
import torch

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.launch import check_config
from fedsvd.lora import peft_model
from fedsvd.methods import build_run_method
from fedsvd.models.loading import load_tokenizer
from fedsvd.privacy.gradient_maps import Preconditioning, Projection
from fedsvd.runtime import losses, public_mean
from fedsvd.runtime.model import initial_adapter, load_model
from fedsvd.runtime.round_maps import round_maps

RUN = ["experiment=smoke", "train.head=private", "privacy.project_public_mean=true"]


REGRESSION = ["model.task=regression", "partition=iid", "train.head_init=random"]


@pytest.mark.slow
@pytest.mark.parametrize("task", [[], REGRESSION], ids=["classes", "regression"])
def test_the_projection_removes_the_mean_gradient_of_public_text(
    task: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_mean, "MAX_TEXTS", 3)
    public_mean._public_inputs.cache_clear()
    losses.clear_caches()
    config = compose([*RUN, *task])
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
        gradients = torch.autograd.grad(logits[0] - logits[1] if len(logits) > 1 else logits[0], factors)
        mean = mean + torch.cat([gradient.reshape(-1) for gradient in gradients]) / 3
    direction = torch.cat([projection.directions[id(factor)].reshape(-1) for factor in factors])
    assert abs(torch.nn.functional.cosine_similarity(direction, mean, dim=0).item()) > 1 - 1e-5
    assert round_maps(config, model, {"head"}) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy=client_level"], "clips no example's gradient"),
        (["data=bbc_news"], "own data are the same text"),
        (["model.task=causal_lm", "train.head=frozen"], "does not have one of several classes"),
    ],
)
def test_settings_without_a_public_mean_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([*RUN, *overrides])


OTHER = [
    "experiment=smoke", "train.head=private", "method.pivot=A", "method.init_a=zeros", "method.init_b=public_jacobian",
    "privacy.standardize_inputs=true", "model.rank=1",
]  # fmt: skip


def test_a_is_trained_in_coordinates_of_public_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsvd.runtime.public_statistics.cache_folder", lambda: tmp_path)
    losses.clear_caches()
    config = compose(OTHER)
    model, method = load_model(config), build_run_method(config)
    adapter = initial_adapter(config, method)
    peft_model.write(model, adapter)
    trained = peft_model.set_trainable(model, {"A", "head"})
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    (map_,) = round_maps(config, model, {"A", "head"})

    # Statistics that are not cached yet are computed in the frozen model, which must not change what is trained.
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trainable
    assert {path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir()} == {"public-jacobian", "public-inputs"}
    assert isinstance(map_, Preconditioning)
    sites = peft_model.lora_sites(model)
    assert map_.matrices.keys() == {id(site.A) for site in sites.values()} < {id(p) for p in trained}
    for name, site in sites.items():
        assert map_.matrices[id(site.A)].shape == (site.A.shape[1], site.A.shape[1])
        torch.testing.assert_close(adapter.B[name].mT @ adapter.B[name], torch.eye(1))
        assert not adapter.A[name].any()
    assert round_maps(config, model, {"B", "head"}) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy=client_level"], "standardize_inputs = True is not possible with privacy.name = client_level"),
        (["method=ffa_lora"], "the method does not train A"),
        (["method=tangent", "train.local_steps=1"], "has coordinates of its own"),
        (["train.head_init=zeros"], "a head of zeros does not depend on any layer"),
        (["model.task=causal_lm", "model=tiny_llama", "train.head=frozen"], "it needs one prediction per text"),
        (["data=bbc_news"], "own data are the same text"),
    ],
)
def test_settings_without_coordinates_of_public_text_are_rejected(overrides: list[str], message: str) -> None:
    own = [*OTHER[:2], *OTHER[5:]] if overrides[0].startswith("method=") else OTHER
    with pytest.raises(ConfigError, match=message):
        check_config(compose([*own, *overrides]))

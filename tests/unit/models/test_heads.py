"""Heads of other packages: a module on pooled features, trained and stored like the linear layer that it replaces."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_pooled import BACKBONES, INPUTS, adapted, check_against_loop
from torch import nn
from transformers import T5Config, T5Model

from fedsvd.config import ModelConfig, plugins
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, ModelError
from fedsvd.lora import peft_model
from fedsvd.models.heads import build_head
from fedsvd.models.pooled import PooledClassifier, Pooling
from fedsvd.privacy.grad_sample_modes import opacus_hooks
from fedsvd.runtime.base_model import describe_pooling, load_base
from fedsvd.trained.export import export_model
from fedsvd.training.per_example_gradients import fused_gradients, unsupported_reason


def build(width: int, num_labels: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, num_labels))


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Return a function that adds a head under the name ``wide``, as an installed package would."""

    def add(load: object) -> None:
        entry = SimpleNamespace(name="wide", value="lab.wide:build", module="lab.wide", dist=None, load=lambda: load)
        groups = {plugins.METHODS: {}, plugins.DATA: {}, plugins.HEADS: {"wide": entry}}
        monkeypatch.setattr(plugins, "_entries", lambda: groups)

    add(build)
    return add


def test_its_parameters_depend_on_the_seed_alone(head: object) -> None:
    first = build_head("wide", 16, 3, seed=1).state_dict()
    torch.rand(7)
    state = torch.get_rng_state()

    again, other = (build_head("wide", 16, 3, seed).state_dict() for seed in (1, 2))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_per_example_gradients_of_all_its_layers_equal_a_loop(head: object) -> None:
    model = PooledClassifier(BACKBONES["bert"](), "mean", 3, 0, head="wide").eval()
    wrapped = adapted(model, "A", "B", "head", layers="all")

    assert sorted(peft_model.read(wrapped).head) == [
        f"classifier.{n}.{kind}" for n in (0, 2) for kind in ("bias", "weight")
    ]
    assert wrapped(**INPUTS).logits.shape == (4, 3)
    assert unsupported_reason(wrapped) is None
    for mode in (fused_gradients, opacus_hooks):
        check_against_loop(wrapped, mode)


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        (lambda width, labels: 1 / 0, "building it failed .ZeroDivisionError"),
        (lambda width, labels: "head", "it is 'str' and not a torch module"),
        (lambda width, labels: nn.Identity(), "its parameters are not float32, or it has none"),
        (lambda width, labels: nn.Linear(width, labels).double(), "its parameters are not float32"),
        (lambda width, labels: nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, labels)), "it has buffers"),
        (lambda width, labels: nn.Sequential(nn.Dropout(), nn.Linear(width, labels)), "it has dropout"),
        (lambda width, labels: nn.Linear(width + 1, labels), r"it fails on features of shape \(3, 16\)"),
        (lambda width, labels: nn.Linear(width, 5), r"\(3, 5\) and not to logits of shape \(3, 2\)"),
    ],
)
def test_what_is_no_head_is_refused(head: Callable[[object], None], load: object, problem: str) -> None:
    head(load)
    with pytest.raises(ModelError, match=f"model.head = 'wide' cannot be used: .*{problem}"):
        build_head("wide", 16, 2, seed=0)


@pytest.mark.parametrize(("source", "pooling"), [("tiny", "first"), ("tiny-roberta", "first"), ("tiny-llama", "last")])
def test_it_reads_pooled_features_where_the_stock_class_has_the_same_pooling(
    source: str, pooling: Pooling, head: object
) -> None:
    config = ModelConfig("own", f"embedded:{source}", pooling=pooling, head="wide")

    model, modules = load_base(config, 2, 0)

    assert isinstance(model, PooledClassifier)
    assert isinstance(model.classifier, nn.Sequential)
    assert (model.pooling, modules) == (pooling, ["classifier"])
    description = describe_pooling(config)
    assert description is not None
    assert "stock" not in description["summary"]


def test_an_encoder_decoder_has_no_pooled_features_for_it(head: object, tmp_path: Path) -> None:
    T5Model(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    config = ModelConfig("own", str(tmp_path), pooling="first", head="wide")

    with pytest.raises(ModelError, match=r"encoder-decoder model: .*model\.head.* are for encoders and decoders"):
        load_base(config, 2, 0)


def test_settings_that_do_not_fit_are_refused(head: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.head = 'wild' is invalid: .*a head of another package"):
        compose(["model.head=wild"])
    with pytest.raises(ConfigError, match=r"model.head = wide is not possible with model.pooling = auto"):
        compose(["model.head=wide"])
    with pytest.raises(ConfigError, match=r"zero_shot is not possible with model.head = wide"):
        compose(["model=tiny", "model.head=wide", "model.pooling=mean", "train.head_init=zero_shot"])
    run = SimpleNamespace(config=compose(["model=tiny", "model.head=wide", "model.pooling=mean"]))
    with pytest.raises(ModelError, match=r"a run with model.head = wide cannot be exported"):
        export_model(run, tmp_path / "to", merge=True)  # type: ignore[arg-type]

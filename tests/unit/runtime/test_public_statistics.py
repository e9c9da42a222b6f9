"""Statistics of public text in a real run: the initial A, and the coordinates in which A is trained."""

from pathlib import Path

import pytest
import torch

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.lora import peft_model
from fedsvd.lora.peft_model import lora_sites
from fedsvd.methods import build_run_method
from fedsvd.models.loading import load_tokenizer
from fedsvd.runtime import losses
from fedsvd.runtime.model import initial_adapter, load_model
from fedsvd.runtime.public_statistics import input_preconditioners, public_columns

RUN = ["experiment=smoke", "method.init_a=public_pca"]


@pytest.mark.slow
def test_a_starts_orthogonal_to_what_all_texts_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsvd.runtime.public_statistics.cache_folder", lambda: tmp_path)
    losses.clear_caches()
    config, other_seed = compose([*RUN, "model.rank=3"]), compose([*RUN, "model.rank=3", "seed=7"])
    adapter = initial_adapter(config, build_run_method(config))
    name = next(iter(adapter.A))
    A, model = adapter.A[name], load_model(config)
    inputs: list[torch.Tensor] = []
    lora_sites(model)[name].layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    model(**load_tokenizer(config.model.source)("A fine film.", return_tensors="pt"))
    cls, content = inputs[0][0], inputs[0][1:-1]

    torch.testing.assert_close(A @ A.mT, torch.eye(3))
    # At the lowest site, [CLS] has the same input in every text.
    assert (A @ cls).norm() < 1e-4 * cls.norm()
    assert (A @ content.mT).norm() > 1e-2 * content.norm()
    again = initial_adapter(other_seed, build_run_method(other_seed))
    assert torch.equal(again.A[name], A)
    assert len(list(tmp_path.iterdir())) == 1


def test_columns_of_b_belong_to_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsvd.runtime.public_statistics.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("fedsvd.runtime.public_statistics.output_directions", lambda *_: {"s": torch.rand(2, 1)})
    config = compose(["experiment=smoke"])
    model = load_model(config)
    heads = [{"w": torch.zeros(2)}, {"w": torch.ones(2)}, {"w": torch.zeros(2)}]

    first, other, again = (public_columns(model, config.model, head)["s"] for head in heads)

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_private_text_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"model\.public_text = embedded:bbc_news is not possible"):
        compose([*RUN, "data=bbc_news"])


def test_a_merged_base_does_not_change_the_coordinates_of_a(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsvd.runtime.public_statistics.cache_folder", lambda: tmp_path)
    losses.clear_caches()
    config = compose(["experiment=smoke", "method=flora", "privacy.standardize_inputs=true"])
    model, start = load_model(config), initial_adapter(config, build_run_method(config))
    expected = input_preconditioners(model, config.model)
    left = {name: torch.ones(len(B), 1) for name, B in start.B.items()}
    right = {name: torch.ones(1, A.shape[1]) for name, A in start.A.items()}
    peft_model.write(model, start.with_parts({"base_left": left, "base_right": right}))
    merged = [site.layer.get_base_layer().weight.clone() for site in lora_sites(model).values()]

    # As in a process that answers its first message in a later round.
    input_preconditioners.cache_clear()
    again = input_preconditioners(model, config.model)

    assert all(torch.equal(again[name], matrix) for name, matrix in expected.items())
    assert len(list(tmp_path.iterdir())) == 1
    for site, weight in zip(lora_sites(model).values(), merged, strict=True):
        assert torch.equal(site.layer.get_base_layer().weight, weight)
    losses.clear_caches()

"""Initial A of a real run from public text."""

from pathlib import Path

import pytest
import torch

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.lora.peft_model import lora_sites
from fedsvd.methods import build_run_method
from fedsvd.models.loading import load_tokenizer
from fedsvd.runtime import losses
from fedsvd.runtime.model import initial_adapter, load_model

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


def test_private_text_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"model\.public_text = embedded:bbc_news is not possible"):
        compose([*RUN, "data=bbc_news"])

"""The initial adapter of a run, in a process that has trained the shared model of earlier runs."""

from dataclasses import replace

import pytest
import torch

from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_run_method
from fedsvd.runtime.model import clear_model_cache, initial_adapter, load_model

RUN = ("experiment=smoke", "train.head=private")
ZERO_SHOT = (*RUN, "train.head_init=zero_shot")


def start(config: Config) -> Adapter:
    return initial_adapter(config, build_run_method(config))


def train(config: Config) -> None:
    """Change everything that runs change: factors, cores, the head and, by a merged base, the frozen weights."""
    model = load_model(config)
    adapter = peft_model.read(model)
    changed = {
        part: {name: tensor + 1 for name, tensor in adapter.part(part).items()} for part in ("A", "B", "core", "head")
    }
    base_left = {name: torch.ones(len(B), 1) for name, B in adapter.B.items()}
    base_right = {name: torch.ones(1, A.shape[1]) for name, A in adapter.A.items()}
    peft_model.write(model, replace(adapter, **changed, base_left=base_left, base_right=base_right))


@pytest.mark.parametrize(
    "overrides",
    [RUN, (*RUN, "method=fed_sb"), (*RUN, "method.init_a=public_pca"), ZERO_SHOT],
    ids=["fedsvd", "fed_sb", "public_pca", "zero_shot"],
)
def test_a_run_starts_from_the_model_as_it_was_loaded(overrides: tuple[str, ...]) -> None:
    config = compose(list(overrides))
    clear_model_cache()
    expected = start(config)
    clear_model_cache()
    train(config)
    # Other runs on the same model make a bounded cache forget the first one's initialization.
    others = [init for init in ("kaiming", "orthonormal", "weight_svd", "dct") if init != config.method["init_a"]]
    for init in [*others, "kaiming"]:
        start(compose([*overrides, f"method.init_a={init}"]))
    actual = start(config)

    for part in ("A", "B", "core", "head"):
        assert actual.part(part).keys() == expected.part(part).keys()
        for name, tensor in expected.part(part).items():
            assert torch.equal(actual.part(part)[name], tensor), f"{part} of {name}"

"""Cached outputs of parts of the last layer, and of products with its frozen weights."""

import peft
import pytest
import torch
from prefix_models import LARGE, adapted, losses
from torch import Tensor, nn

from fedsvd.lora import peft_model
from fedsvd.training.prefix_cache import PrefixCache
from fedsvd.training.state_store import MemoryBudget, StateStore

# Sites behind the attention, and the parts of the layer before them.
LATE_SITES = {
    "bert": ("2.output.dense", ["attention", "intermediate"]),
    "mpnet": ("2.output.dense", ["attention", "intermediate"]),
    "gpt2": ("2.mlp.c_fc", ["ln_1", "attn", "ln_2"]),
}


def computed_products(model: peft.PeftModel, cache: PrefixCache) -> set[str]:
    """Return the names of the frozen layers of the last attention that compute their product."""
    attention = model.base_model.model.bert.encoder.layer[2].attention.self
    frozen = {
        "query": attention.query.get_base_layer(),
        "key": attention.key,
        "value": attention.value.get_base_layer(),
    }
    original, weights = nn.functional.linear, list[int]()

    def record(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        weights.append(weight.data_ptr())
        return original(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", record)
        losses(model, range(6), cache)
    return {name for name, layer in frozen.items() if layer.weight.data_ptr() in weights}


@pytest.mark.parametrize("kind", LATE_SITES)
def test_parts_of_the_last_layer_before_its_first_site_compute_each_example_once(kind: str) -> None:
    target, parts = LATE_SITES[kind]
    model = adapted(kind, target=target)
    draws = ([0, 1, 2], [2, 1, 3], [4, 3, 5, 2, 1, 0])
    expected = [losses(model, positions) for positions in draws]
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    layer = next(m for name, m in model.named_modules() if name.endswith(("layer.2", "h.2")))
    rows: dict[str, list[int]] = {name: [] for name in parts}
    for name, seen in rows.items():
        module = layer.get_submodule(name)
        module.register_forward_hook(
            lambda module, args, output, seen=seen: (
                seen.append(len(output[0] if isinstance(output, tuple) else output))
                if "forward" not in vars(module)
                else None
            )
        )

    for positions, loss in zip(draws, expected, strict=True):
        torch.testing.assert_close(losses(model, positions, cache), loss, atol=1e-6, rtol=1e-5)

    # As for the layers below: two examples twice in the check, then each example once.
    assert rows == {name: [2, 2, 3, 1, 2] for name in parts}
    assert not any("forward" in vars(module) for module in model.modules())


def test_models_with_other_parts_before_the_first_site_do_not_share_them() -> None:
    models, store = (
        [adapted(target="2.output.dense"), adapted(target="2.output.dense"), adapted()],
        StateStore(MemoryBudget(LARGE)),
    )
    with torch.no_grad():
        models[1].base_model.model.bert.encoder.layer[2].intermediate.dense.weight.mul_(-2)
    for _ in range(2):
        for model in models:
            cached = losses(model, range(6), PrefixCache(model, store))
            torch.testing.assert_close(cached, losses(model, range(6)), atol=1e-6, rtol=1e-5)


def test_a_part_that_is_read_beside_its_output_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    # Something that the layer returns depends on the attention's second output, which is not cached.
    model = adapted(target="2.output.dense")
    model.get_base_model().set_attn_implementation("eager")
    layer = model.base_model.model.bert.encoder.layer[2]
    weights: list[Tensor | None] = []
    layer.attention.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    layer.register_forward_hook(
        lambda module, args, output: output if weights[-1] is None else output + weights[-1].square().mean()
    )
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    for _ in range(2):
        torch.testing.assert_close(losses(model, [0, 1], cache), losses(model, [0, 1]), atol=1e-6, rtol=1e-5)
    # Only the check has tried to cache the attention.
    assert [index for index, weight in enumerate(weights) if weight is None] == [2]
    assert not [record for record in caplog.records if record.name.startswith("fedsvd")]


def test_products_are_cached_and_recomputed_while_a_weight_is_changed() -> None:
    model = adapted()
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    losses(model, range(6), cache)
    assert computed_products(model, cache) == set()
    # Some methods merge factors into the frozen weight and remove them again.
    with torch.no_grad():
        model.base_model.model.bert.encoder.layer[2].attention.self.value.get_base_layer().weight.add_(0.1)
    assert computed_products(model, cache) == {"value"}
    torch.testing.assert_close(losses(model, range(6), cache), losses(model, range(6)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("merged_first", [True, False])
def test_models_that_share_a_store_cache_products_of_the_weights_as_loaded(merged_first: bool) -> None:
    plain, merged = adapted(), adapted()
    # As in a resumed run of FLoRA: factors are merged before anything is cached.
    before = peft_model.read(merged)
    left = {name: torch.randn(len(B), 2) for name, B in before.B.items()}
    right = {name: torch.randn(2, A.shape[1]) for name, A in before.A.items()}
    peft_model.write(merged, before.with_parts({"base_left": left, "base_right": right}))
    expected = {model: losses(model, range(6)) for model in (plain, merged)}
    assert not torch.allclose(*expected.values(), atol=1e-4)
    store = StateStore(MemoryBudget(LARGE))
    caches = {model: PrefixCache(model, store) for model in expected}

    for model in (merged, plain) if merged_first else (plain, merged):
        for _ in range(2):
            torch.testing.assert_close(losses(model, range(6), caches[model]), expected[model], atol=1e-6, rtol=1e-5)
    assert computed_products(plain, caches[plain]) == set()
    assert computed_products(merged, caches[merged]) == {"query", "value"}


@pytest.mark.parametrize("first", [0, 1])
def test_a_model_with_other_frozen_weights_computes_its_own_products(first: int) -> None:
    models, store = [adapted(), adapted()], StateStore(MemoryBudget(LARGE))
    with torch.no_grad():
        models[1].base_model.model.bert.encoder.layer[2].attention.self.key.weight.mul_(-2)
    for model in (models[first], models[1 - first]):
        cache = PrefixCache(model, store)
        for _ in range(2):
            cached = losses(model, range(6), cache)
            torch.testing.assert_close(cached, losses(model, range(6)), atol=1e-6, rtol=1e-5)

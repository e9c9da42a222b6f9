"""Cached states of frozen lower layers: same losses and gradients, less computation, bounded memory."""

import gc
import logging
from collections.abc import Sequence

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
)

from fedsvd.lora import peft_model
from fedsvd.lora.initialization import initialize_factors
from fedsvd.privacy.grad_sample_modes import GradSampleMode, opacus_hooks, per_example_gradients
from fedsvd.training.per_example_gradients import fused_gradients
from fedsvd.training.prefix_cache import PrefixCache
from fedsvd.training.state_store import MemoryBudget, StateStore

LENGTHS = [3, 7, 4, 7, 2, 5]
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
         "intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
WIDTH, LARGE = 16, 2**20


def base(kind: str) -> tuple[PreTrainedModel, list[str], list[str]]:
    if kind == "gpt2":
        config = GPT2Config(vocab_size=50, n_embd=WIDTH, n_layer=3, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
                            attn_pdrop=0.0, pad_token_id=0)  # fmt: skip
        return GPT2ForSequenceClassification(config), ["c_attn"], ["score"]
    if kind == "mpnet":
        return MPNetForSequenceClassification(MPNetConfig(**SIZES, pad_token_id=0)), ["q", "v"], ["classifier"]
    return BertForSequenceClassification(BertConfig(**SIZES)), ["query", "value"], ["classifier"]


# Sites behind the attention, and the parts of the layer before them.
LATE_SITES = {
    "bert": ("2.output.dense", ["attention", "intermediate"]),
    "mpnet": ("2.output.dense", ["attention", "intermediate"]),
    "gpt2": ("2.mlp.c_fc", ["ln_1", "attn", "ln_2"]),
}


def adapted(kind: str = "bert", lora_layers: str = "top_1", target: str | None = None) -> peft.PeftModel:
    torch.manual_seed(0)
    model, targets, head = base(kind)
    targets = [target] if target else targets
    model = peft_model.attach(
        model, rank=4, lora_alpha=16, target_modules=targets, head_modules=head, lora_layers=lora_layers
    )
    peft_model.write(model, initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="kaiming", seed=0))
    peft_model.set_trainable(model, {"B", "head"})
    return model.eval()


def batch(positions: Sequence[int], left: bool = False) -> dict[str, Tensor]:
    longest = max(LENGTHS[i] for i in positions)
    ids = torch.zeros(len(positions), longest, dtype=torch.long)
    for row, i in enumerate(positions):
        text = torch.randint(1, 50, (LENGTHS[i],), generator=torch.Generator().manual_seed(i))
        ids[row, slice(longest - LENGTHS[i], None) if left else slice(LENGTHS[i])] = text
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def losses(model: nn.Module, positions: Sequence[int], cache: PrefixCache | None = None) -> Tensor:
    inputs = batch(positions)
    labels = torch.tensor([i % 2 for i in positions])
    if cache is None:
        return nn.functional.cross_entropy(model(**inputs).logits, labels, reduction="none")
    with cache.reuse_states(model, inputs):
        return nn.functional.cross_entropy(model(**inputs).logits, labels, reduction="none")


def lowest_layer_rows(model: nn.Module) -> list[int]:
    """Return a list that collects the batch size of each further forward pass of the lowest layer."""
    rows: list[int] = []
    inner = next(module for name, module in model.named_modules() if name.endswith(("layer.0.attention", "h.0.attn")))
    inner.register_forward_pre_hook(lambda module, args, kwargs: rows.append(len(args[0])), with_kwargs=True)
    return rows


@pytest.mark.parametrize("kind", ["bert", "gpt2", "mpnet"])
def test_losses_match_the_full_model_and_lower_layers_compute_each_example_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(kind)
    draws = ([0, 1, 2], [2, 1, 3], [5, 0], [4, 3, 5, 2, 1, 0], [2])
    expected = [losses(model, positions) for positions in draws]
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    rows = lowest_layer_rows(model)

    for positions, loss in zip(draws, expected, strict=True):
        torch.testing.assert_close(losses(model, positions, cache), loss, atol=1e-6, rtol=1e-5)

    # The initial check runs two examples twice; afterwards each example is computed once, when it is first drawn.
    assert rows == [2, 2, 3, 1, 1, 1]
    assert len(cache) == 6
    assert not [record for record in caplog.records if record.name.startswith("fedsvd")]
    assert not any("forward" in vars(module) for module in model.modules())


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


@pytest.mark.parametrize("target", [None, "2.output.dense"])
@pytest.mark.parametrize("per_example", [opacus_hooks, fused_gradients], ids=["hooks", "fused"])
def test_per_example_gradients_equal_a_loop(per_example: GradSampleMode, target: str | None) -> None:
    model = adapted(target=target)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    for _ in range(2):
        gradients = per_example_gradients(
            model, lambda module, positions: losses(module, positions, cache), range(6), per_example
        )
        for position in range(6):
            expected = torch.autograd.grad(losses(model, [position]).sum(), list(trained.values()))
            for name, gradient in zip(trained, expected, strict=True):
                torch.testing.assert_close(gradients[name][position], gradient, atol=1e-5, rtol=1e-5)


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


def test_repeated_texts_are_computed_once_and_token_types_distinguish_texts() -> None:
    model = adapted()
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    torch.testing.assert_close(losses(model, [3, 0, 3], cache), losses(model, [3, 0, 3]), atol=1e-6, rtol=1e-5)
    assert len(cache) == 2

    plain = batch([0, 3])
    typed = plain | {"token_type_ids": (plain["input_ids"] > 25).long()}
    for inputs in (typed, plain):
        with cache.reuse_states(model, inputs):
            logits = model(**inputs).logits
        torch.testing.assert_close(logits, model(**inputs).logits, atol=1e-6, rtol=1e-5)
    assert len(cache) == 4


def test_cached_states_do_not_depend_on_trained_parameters() -> None:
    model = adapted()
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    before = losses(model, [0, 1], cache)
    with torch.no_grad():
        for site in peft_model.lora_sites(model).values():
            site.B.add_(0.5)

    assert not torch.allclose(losses(model, [0, 1], cache), before)
    torch.testing.assert_close(losses(model, [0, 1], cache), losses(model, [0, 1]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("lora_layers", "vectors_per_token"), [("top_2", 1), ("top_1", 4)])
def test_memory_is_bounded_and_released(lora_layers: str, vectors_per_token: int) -> None:
    # With two adapted layers only the states are cached; with the last layer alone, its three products, too.
    model, width = adapted(lora_layers=lora_layers), vectors_per_token * WIDTH
    budget = MemoryBudget(4 * width * (LENGTHS[0] + LENGTHS[1]) + 3)
    cache = PrefixCache(model, StateStore(budget))
    for _ in range(2):
        torch.testing.assert_close(losses(model, range(6), cache), losses(model, range(6)), atol=1e-6, rtol=1e-5)

    # Examples 0 and 1 (3 and 7 tokens) fill the budget; no other example fits.
    assert len(cache) == 2
    assert budget.used_bytes == 4 * width * 10
    del cache
    gc.collect()
    assert budget.used_bytes == 0


@pytest.mark.parametrize(("lora_layers", "limit"), [("all", LARGE), ("top_3", LARGE), ("top_1", 0)])
def test_nothing_is_cached_without_frozen_lower_layers_or_memory(lora_layers: str, limit: int) -> None:
    model = adapted(lora_layers=lora_layers)
    cache = PrefixCache(model, StateStore(MemoryBudget(limit)))
    torch.testing.assert_close(losses(model, [0, 1], cache), losses(model, [0, 1]), atol=0, rtol=0)
    assert len(cache) == 0


def test_left_padding_disables_the_cache_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = adapted("gpt2")
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with cache.reuse_states(model, batch([0, 1], left=True)):
                model(**batch([0, 1], left=True))
    # transformers has warnings of its own, which are captured if an earlier test has let them through.
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("fedsvd")]
    assert ["padded on the left" in warning for warning in warnings] == [True]
    assert len(cache) == 0


@pytest.mark.parametrize("reads_embeddings", [False, True])
def test_embeddings_are_skipped_unless_another_layer_reads_them(reads_embeddings: bool) -> None:
    model, positions = adapted(), [0, 3, 1]
    bert = model.base_model.model.bert
    embedded, calls = [], []
    bert.embeddings.register_forward_hook(lambda module, args, output: embedded.append(output))
    bert.embeddings.word_embeddings.register_forward_hook(lambda *_: calls.append(1))
    if reads_embeddings:
        bert.encoder.layer[2].register_forward_hook(lambda module, args, output: output + embedded[-1])
    expected = losses(model, positions)
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))

    torch.testing.assert_close(losses(model, positions, cache), expected, atol=1e-6, rtol=1e-5)
    calls.clear()
    torch.testing.assert_close(losses(model, positions, cache), expected, atol=1e-6, rtol=1e-5)

    assert len(calls) == reads_embeddings
    assert len(cache) == 3


def test_a_model_with_a_skip_connection_over_the_prefix_is_detected(caplog: pytest.LogCaptureFixture) -> None:
    model = adapted()
    layers = model.base_model.model.bert.encoder.layer
    lowest: list[Tensor] = []
    layers[0].register_forward_hook(lambda module, args, output: lowest.append(output))
    layers[2].register_forward_hook(lambda module, args, output: output + lowest[-1])
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))

    torch.testing.assert_close(losses(model, [0, 1], cache), losses(model, [0, 1]), atol=0, rtol=0)
    assert "cached states change the model's output" in caplog.text


def test_texts_are_recognized_by_inputs_on_the_cpu() -> None:
    model, positions = adapted(), [0, 3, 1]
    inputs, cache = batch(positions), PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    expected = losses(model, positions, cache)
    # Keys and padding are read from the copy on the CPU alone, whatever the device's tokens are.
    others = {name: torch.zeros_like(tensor) for name, tensor in inputs.items()} | {
        "attention_mask": inputs["attention_mask"]
    }
    with cache.reuse_states(model, others, inputs):
        logits = model(**inputs).logits
    labels = torch.tensor([i % 2 for i in positions])

    torch.testing.assert_close(nn.functional.cross_entropy(logits, labels, reduction="none"), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cached_states_are_gathered_without_waiting_for_the_gpu() -> None:
    model, on_cpu = adapted().to("cuda"), batch([0, 3, 1])
    inputs, cache = (
        {name: tensor.to("cuda") for name, tensor in on_cpu.items()},
        PrefixCache(model, StateStore(MemoryBudget(LARGE))),
    )
    with cache.reuse_states(model, inputs, on_cpu):
        model(**inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with cache.reuse_states(model, inputs, on_cpu):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")

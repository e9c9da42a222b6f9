"""Cached states of frozen lower layers: same losses and gradients, less computation, bounded memory."""

import gc
import logging

import pytest
import torch
from prefix_models import LARGE, LENGTHS, WIDTH, adapted, batch, losses, lowest_layer_rows
from torch import Tensor, nn

from fedsvd.lora import peft_model
from fedsvd.privacy.grad_sample_modes import GradSampleMode, opacus_hooks, per_example_gradients
from fedsvd.training.per_example_gradients import fused_gradients
from fedsvd.training.prefix_cache import PrefixCache
from fedsvd.training.state_store import CPU, MemoryBudget, StateStore


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
    limit = 4 * width * (LENGTHS[0] + LENGTHS[1]) + 3
    budget = MemoryBudget(limit)
    cache = PrefixCache(model, StateStore(budget))
    for _ in range(2):
        torch.testing.assert_close(losses(model, range(6), cache), losses(model, range(6)), atol=1e-6, rtol=1e-5)

    # Examples 0 and 1 (3 and 7 tokens) fill the budget; no other example fits.
    assert len(cache) == 2
    assert (budget.fits(3, CPU), budget.fits(4, CPU)) == (True, False)
    del cache
    gc.collect()
    assert (budget.fits(limit, CPU), budget.fits(limit + 1, CPU)) == (True, False)


@pytest.mark.parametrize(("lora_layers", "limit"), [("all", LARGE), ("top_3", LARGE), ("top_1", 0)])
def test_nothing_is_cached_without_frozen_lower_layers_or_memory(lora_layers: str, limit: int) -> None:
    model = adapted(lora_layers=lora_layers)
    cache = PrefixCache(model, StateStore(MemoryBudget(limit)))
    torch.testing.assert_close(losses(model, [0, 1], cache), losses(model, [0, 1]), atol=0, rtol=0)
    assert len(cache) == 0


@pytest.mark.parametrize("starts_with_others", [True, False])
@pytest.mark.parametrize("kind", ["left", "unmasked"])
def test_batches_that_cannot_be_cached_are_computed_in_full_among_others(
    kind: str, starts_with_others: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted("gpt2")
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))
    right = batch([0, 1])
    other = batch([0, 1], left=True)
    if kind == "unmasked":
        # As for packed sequences, whose positions tell them apart.
        other = {"input_ids": right["input_ids"], "position_ids": torch.arange(7).repeat(2, 1)}
    with caplog.at_level(logging.WARNING):
        for inputs in (other, right, other, right) if starts_with_others else (right, other, right, other):
            with cache.reuse_states(model, inputs):
                logits = model(**inputs).logits
            torch.testing.assert_close(logits, model(**inputs).logits, atol=1e-6, rtol=1e-5)
    # transformers has warnings of its own, which are captured if an earlier test has let them through.
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("fedsvd")]
    reason = "padded on the left" if kind == "left" else r"without a mask of shape (batch, length)"
    assert [reason in warning for warning in warnings] == [True]
    assert len(cache) == 2


def test_a_check_that_runs_out_of_memory_is_repeated() -> None:
    model = adapted()
    cache = PrefixCache(model, StateStore(MemoryBudget(LARGE)))

    def fail(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    hook = model.base_model.model.bert.encoder.layer[1].register_forward_hook(fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        losses(model, [0, 1], cache)
    hook.remove()

    torch.testing.assert_close(losses(model, [0, 1], cache), losses(model, [0, 1]), atol=1e-6, rtol=1e-5)
    assert len(cache) == 2


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

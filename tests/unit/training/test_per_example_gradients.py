"""The fused path beyond BERT: other layer types, when it is chosen, and that it restores the model."""

import logging
from contextlib import nullcontext

import accelerate
import peft
import pytest
import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fedsvd.errors import PrivacyError
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Part
from fedsvd.lora.frozen_weights import frozen_weights
from fedsvd.lora.initialization import initialize_factors
from fedsvd.privacy.grad_sample_modes import (
    GradSampleMode,
    check_per_example_gradients,
    opacus_hooks,
    per_example_gradients,
)
from fedsvd.training.per_example_gradients import (
    _warn_once,
    choose_grad_sample_mode,
    fused_gradients,
    unsupported_reason,
)

LENGTHS = [3, 7, 4, 7]


def gpt2() -> tuple[PreTrainedModel, list[str], list[str]]:
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                        pad_token_id=0)  # fmt: skip
    return GPT2ForSequenceClassification(config), ["c_attn"], ["score"]


def roberta() -> tuple[PreTrainedModel, list[str], list[str]]:
    config = RobertaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
                           intermediate_size=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    return RobertaForSequenceClassification(config), ["query", "dense"], ["classifier"]


def adapted(kind: str, parts: set[Part], dropout: float = 0.0) -> tuple[peft.PeftModel, list[nn.Parameter]]:
    """Build an adapted model, with a core if it is trained."""
    torch.manual_seed(0)
    base, targets, head = {"gpt2": gpt2, "roberta": roberta}[kind]()
    model = peft_model.attach(
        base,
        rank=4,
        lora_alpha=16,
        target_modules=targets,
        head_modules=head,
        lora_dropout=dropout,
        core="core" in parts,
    )
    drawn = initialize_factors(peft_model.read(model), init_a="orthonormal", init_b="kaiming", seed=0)
    peft_model.write(model, drawn.with_parts({"core": {name: torch.randn(4, 4) for name in drawn.core}}))
    return model, peft_model.set_trainable(model, parts)


def losses(model: nn.Module, positions: object) -> Tensor:
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(1, 50, (length,), generator=generator)
    chosen = ids[list(positions)]  # type: ignore[call-overload]
    logits = model(input_ids=chosen, attention_mask=(chosen != 0).long()).logits
    return nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0])[list(positions)], reduction="none")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "parts", [{"B"}, {"A", "B", "head"}, {"core"}, {"A", "B", "core"}], ids=lambda parts: "+".join(sorted(parts))
)
@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
@pytest.mark.parametrize("per_example", [fused_gradients, opacus_hooks])
def test_per_example_gradients_equal_a_loop(kind: str, parts: set[Part], per_example: GradSampleMode) -> None:
    model, trained = adapted(kind, parts)
    names = {parameter: name for name, parameter in model.named_parameters()}

    gradients = per_example_gradients(model, losses, range(4), per_example)

    assert len(gradients) == len(trained)
    for position in range(4):
        expected = torch.autograd.grad(losses(model, [position]).sum(), trained)
        for parameter, gradient in zip(trained, expected, strict=True):
            torch.testing.assert_close(gradients[names[parameter]][position], gradient, atol=1e-5, rtol=1e-5)


def test_layers_that_accelerate_places_on_devices_have_the_same_gradients() -> None:
    expected_model, _ = adapted("roberta", {"A", "B", "head"})
    expected = per_example_gradients(expected_model, losses, range(4), fused_gradients)
    torch.manual_seed(0)
    base, targets, head = roberta()
    layers = ["roberta.embeddings", "roberta.encoder.layer.0", "roberta.encoder.layer.1", "classifier"]
    # As for a model on several GPUs, hooks before each of these layers move its input.
    accelerate.dispatch_model(base, dict.fromkeys(layers, "cpu"), main_device="cpu", force_hooks=True)
    model = peft_model.attach(base, rank=4, lora_alpha=16, target_modules=targets, head_modules=head)
    peft_model.write(model, peft_model.read(expected_model))
    peft_model.set_trainable(model, {"A", "B", "head"})

    actual = per_example_gradients(model, losses, range(4), fused_gradients)

    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_the_forward_pass_matches_peft(kind: str) -> None:
    model, _ = adapted(kind, {"B"})
    plain = losses(model, range(4))
    with fused_gradients(model):
        fused = losses(model, range(4))
    torch.testing.assert_close(fused, plain, atol=1e-6, rtol=1e-6)
    assert torch.equal(losses(model, range(4)), plain)


def test_gpt2_weights_have_the_shape_of_a_linear_layer() -> None:
    model, _ = adapted("gpt2", {"B"})
    for name, weight in frozen_weights(model).items():
        assert (
            weight.shape
            == (peft_model.read(model).B[name].shape[0], peft_model.read(model).A[name].shape[1])
            == (48, 16)
        )


def test_auto_chooses_the_fused_path_if_supported() -> None:
    model, _ = adapted("gpt2", {"B", "head"})
    assert unsupported_reason(model) is None
    assert choose_grad_sample_mode(model, "auto") is choose_grad_sample_mode(model, "fused") is fused_gradients
    assert choose_grad_sample_mode(model, "hooks") is opacus_hooks


def test_unsupported_models_use_hooks_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    _warn_once.cache_clear()
    model, _ = adapted("roberta", {"B"}, dropout=0.1)
    with caplog.at_level(logging.WARNING):
        assert [choose_grad_sample_mode(model, "auto"), choose_grad_sample_mode(model, "auto")] == [opacus_hooks] * 2
    [record] = caplog.records
    assert "query has dropout before A" in record.getMessage()
    with pytest.raises(PrivacyError, match=r"grad_sample_mode = fused is not possible: .* has dropout before A"):
        choose_grad_sample_mode(model, "fused")


def test_other_trained_parameters_are_unsupported() -> None:
    model, _ = adapted("roberta", {"B"})
    norm = next(module for module in model.modules() if isinstance(module, nn.LayerNorm))
    norm.weight.requires_grad_(True)
    assert "LayerNorm.weight is trained" in str(unsupported_reason(model))
    model, _ = adapted("gpt2", {"B"})
    next(iter(peft_model.lora_sites(model).values())).layer.get_base_layer().weight.requires_grad_(True)
    assert "has a trained base layer" in str(unsupported_reason(model))


def test_norms_of_a_head_have_per_example_gradients() -> None:
    torch.manual_seed(0)
    config = ModernBertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
                              intermediate_size=24, norm_bias=True, bos_token_id=1, eos_token_id=2, cls_token_id=1,
                              sep_token_id=2)  # fmt: skip
    base = ModernBertForSequenceClassification(config).eval()
    model = peft_model.attach(base, rank=2, lora_alpha=4, target_modules="auto", head_modules=["head", "classifier"])
    trained = peft_model.set_trainable(model, ["B", "head"])
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert unsupported_reason(model) is None

    gradients = per_example_gradients(model, losses, range(4), fused_gradients)

    assert {name.rsplit(".", 2)[-2] for name in gradients} == {"default", "dense", "norm"}
    for position in range(4):
        expected = torch.autograd.grad(losses(model, [position]).sum(), trained)
        for parameter, gradient in zip(trained, expected, strict=True):
            torch.testing.assert_close(gradients[names[parameter]][position], gradient, atol=1e-5, rtol=1e-5)


def test_a_model_that_mixes_examples_is_rejected() -> None:
    model, trained = adapted("gpt2", {"B"})

    def flattened(model: nn.Module, positions: object) -> Tensor:
        ids = torch.arange(1, 9).reshape(1, 8)
        return model(input_ids=ids).logits.sum().expand(4) / 4

    with fused_gradients(model):
        flattened(model, range(4)).sum().backward()
        assert trained[0].grad_sample.shape[0] == 1
    with pytest.raises(PrivacyError, match="does not keep examples apart"):
        check_per_example_gradients(trained, 4)


@pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning", "ignore:Full backward hook:UserWarning")
def test_opacus_engine_takes_the_same_steps_with_either_gradients() -> None:
    """Its Poisson batches may be empty: of one in 60 examples, about a third are."""
    results, sizes = [], []
    for mode in ("hooks", "no_op"):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules="0", init_lora_weights=False)
        model = peft.get_peft_model(nn.Sequential(nn.Linear(8, 4)), config)
        data = TensorDataset(torch.randn(60, 8), torch.randint(0, 4, (60,)))
        private, optimizer, loader = PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
            data_loader=DataLoader(data, batch_size=1, generator=torch.Generator().manual_seed(0)),
            noise_multiplier=1.0,
            max_grad_norm=0.5,
            loss_reduction="sum",
            noise_generator=torch.Generator().manual_seed(0),
            grad_sample_mode=mode,
        )
        with fused_gradients(model) if mode == "no_op" else nullcontext():
            for x, y in loader:
                optimizer.zero_grad()
                functional.cross_entropy(private(x), y, reduction="sum").backward()
                optimizer.step()
                sizes.append(len(x))
        results.append([p.detach() for p in model.parameters() if p.requires_grad])

    assert 0 in sizes
    assert max(sizes) > 1
    torch.testing.assert_close(results[0], results[1])


def test_fused_gradients_of_another_model_are_refused() -> None:
    model, _ = adapted("roberta", {"B"}, dropout=0.1)
    with (
        pytest.raises(PrivacyError, match=r"not possible: .* has dropout before A. Use Opacus' hooks"),
        fused_gradients(model),
    ):
        pass

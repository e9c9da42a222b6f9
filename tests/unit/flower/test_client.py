"""What clients do with a message of a strategy, on a small PEFT model."""

import peft
import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedsvd.errors import ModelError
from fedsvd.flower import load_arrays, train_factors

A_KEY, B_KEY = "base_model.model.0.lora_A.weight", "base_model.model.0.lora_B.weight"
LEFT, RIGHT = A_KEY.replace("lora_A", "lora_residual_B"), A_KEY.replace("lora_A", "lora_residual_A")
STATE = {A_KEY: torch.tensor([[1.0, 0.0]]), B_KEY: torch.tensor([[1.0], [2.0]])}
RESIDUAL = {LEFT: torch.eye(2), RIGHT: torch.tensor([[0.0, 1.0], [1.0, 0.0]])}


def make_model(*, head: bool = False) -> peft.PeftModel:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=1, lora_alpha=4, target_modules="0", modules_to_save=["1"] if head else None)
    return peft.get_peft_model(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2)), config)


def weight(model: peft.PeftModel) -> Tensor:
    """Return the weight with which the first layer computes."""
    layer = model.base_model.model[0]
    return (layer.base_layer.weight + layer.get_delta_weight("default")).detach()


def test_arrays_are_loaded_with_the_residual_of_fedex_lora() -> None:
    model = make_model()
    original = model.base_model.model[0].base_layer.weight.detach().clone()

    for _ in range(2):  # The residual is that of all rounds: it is not added to what was loaded before.
        load_arrays(model, ArrayRecord({**STATE, **RESIDUAL}))
        torch.testing.assert_close(weight(model), original + 4 * torch.tensor([[1.0, 1.0], [3.0, 0.0]]))
    load_arrays(model, ArrayRecord(STATE))
    torch.testing.assert_close(weight(model), original + 4 * torch.tensor([[1.0, 0.0], [2.0, 0.0]]))


@pytest.mark.parametrize("factors", ["A", "B", "AB"])
def test_the_named_factors_are_trained_and_the_head_is_left(factors: str) -> None:
    model = make_model(head=True)

    train_factors(model, factors)

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {f"base_model.model.0.lora_{factor}.default.weight" for factor in factors}
    assert trained - expected == {f"base_model.model.1.modules_to_save.default.{name}" for name in ("weight", "bias")}
    assert expected <= trained


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"do not fit the model .*size mismatch"):
        load_arrays(make_model(), ArrayRecord({A_KEY: torch.ones(2, 2), B_KEY: torch.ones(2, 2)}))
    other = {key.replace("model.0", "model.5"): tensor for key, tensor in STATE.items()}
    with pytest.raises(ModelError, match=r"the model has no base_model.model.5"):
        load_arrays(make_model(), ArrayRecord(other))
    with pytest.raises(ModelError, match="factors = 'C' is invalid"):
        train_factors(make_model(), "C")
    with pytest.raises(ModelError, match="Linear has no LoRA factors"):
        train_factors(nn.Linear(2, 2), "B")
    model = make_model()
    layer = model.base_model.model[0].base_layer
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="quantized weight"):
        load_arrays(model, ArrayRecord({**STATE, **RESIDUAL}))

"""Tests of state dicts of PEFT models: those that PEFT writes, and those that it cannot have written."""

from typing import Any

import peft
import pytest
import torch
from orthonormality import is_orthonormal
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedsvd.errors import ModelError
from fedsvd.lora.state_dict import from_state_dict, refactorize_state_dict, to_state_dict

Q = "base_model.model.q"


class Layers(nn.Module):
    """A convolution, a linear layer, transformers' transposed linear layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 2), nn.Linear(16, 6)
        self.transposed, self.head = Conv1D(5, 6), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.transposed(self.linear(self.conv(x).flatten(1)))
        result: Tensor = self.head(hidden)
        return result


# PEFT takes the bias of B for a part of a sharded model.
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 3 LoRA tensor:peft.utils.warning.PeftWarning")
@pytest.mark.parametrize("options", [{"use_rslora": True, "lora_bias": True}, {"use_dora": True}])
def test_the_function_of_a_peft_model_is_unchanged(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, lora_alpha=8, target_modules=["conv", "linear", "transposed"], modules_to_save=["head"],
        init_lora_weights=False, fan_in_fan_out=True, **options,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        model = peft.get_peft_model(Layers(), config)
    x = torch.randn(4, 3, 3, 3)
    before, state = model(x), peft.get_peft_model_state_dict(model)

    new = refactorize_state_dict(state)

    assert list(new) == list(state)
    assert all(new[key].shape == state[key].shape and new[key].dtype == state[key].dtype for key in state)
    factors = [key for key in new if key.endswith("lora_A.weight")]
    assert len(factors) == 3
    assert all(is_orthonormal(new[key].flatten(1)) and not is_orthonormal(state[key].flatten(1)) for key in factors)
    assert not peft.set_peft_model_state_dict(model, new).unexpected_keys
    torch.testing.assert_close(model(x), before)


def test_keys_with_an_adapters_name_are_understood() -> None:
    state = {
        f"{Q}.lora_A.mine.weight": torch.tensor([[0.0, 2.0]]),
        f"{Q}.lora_B.mine.weight": torch.tensor([[3.0], [4.0], [0.0]]),
    }

    new = refactorize_state_dict(state)

    torch.testing.assert_close(new[f"{Q}.lora_A.mine.weight"], torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(new[f"{Q}.lora_B.mine.weight"], torch.tensor([[6.0], [8.0], [0.0]]))


def test_a_residual_is_read_as_the_base() -> None:
    pair = {f"{Q}.lora_A.weight": torch.ones(2, 3), f"{Q}.lora_B.weight": torch.ones(4, 2)}
    residual = {f"{Q}.lora_residual_A.weight": torch.ones(1, 3), f"{Q}.lora_residual_B.weight": torch.ones(4, 1)}
    adapter = from_state_dict(pair | residual)
    assert (adapter.base_rank, next(iter(adapter.base_right.values())).shape) == (1, (1, 3))
    assert list(to_state_dict(adapter, pair)) == [*pair, *reversed(residual)]


A, B = {f"{Q}.lora_A.weight": torch.ones(2, 3)}, {f"{Q}.lora_B.weight": torch.ones(4, 2)}
WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "no LoRA": ({"head.weight": torch.ones(2, 2)}, "no LoRA factors: .* found head.weight"),
    "A alone": (A, f"{Q}.lora_B.weight is missing"),
    "B alone": (B, f"{Q}.lora_A.weight is missing"),
    "B of another name": (A | {f"{Q}.lora_B.default.weight": torch.ones(4, 2)}, "is missing"),
    "two ranks": (A | {f"{Q}.lora_B.weight": torch.ones(4, 3)}, r"\(2, 3\) and B of shape \(4, 3\)"),
    "a sharded factor": ({f"{Q}.lora_A.weight": torch.ones(0)} | B, r"shape \(0,\).*Gather"),
    "a large kernel": (A | {f"{Q}.lora_B.weight": torch.ones(4, 2, 3, 3)}, r"lora_B.weight has shape \(4, 2, 3, 3\)"),
    "an embedding": (A | B | {"base_model.model.e.lora_embedding_A": torch.ones(2, 9)}, "adapts an embedding"),
    "integers": (A | {f"{Q}.lora_B.weight": torch.ones(4, 2, dtype=torch.int8)}, "lora_B.weight has dtype torch.int8"),
    "nan": (A | {f"{Q}.lora_B.weight": torch.full((4, 2), torch.nan)}, "8 entries that are NaN"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_state_dicts_are_refused(name: str) -> None:
    state, message = WRONG[name]
    with pytest.raises(ModelError, match=message):
        refactorize_state_dict(state)

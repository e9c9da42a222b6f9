"""Clients that reply in another precision: the next arrays keep the dtypes of the initial ones, and their precision."""

from collections.abc import Callable

import pytest
import torch
from flwr.app import ConfigRecord
from strategy_runs import A_KEY, B_KEY, FROZEN, INITIAL, STEPS, State, run, tensors

from fedsvd.flower import FedExLoRA, FedSVD, FFALoRA, FlexLoRA, RoLoRA
from fedsvd.flower.strategy import LoRAStrategy

STRATEGIES: list[type[LoRAStrategy]] = [FedExLoRA, FedSVD, FFALoRA, FlexLoRA, RoLoRA]


def train_in(dtype: torch.dtype | None) -> Callable[[int, State, ConfigRecord], State]:
    """Return a client that trains the factors, and replies in a dtype; None for that of the initial arrays."""

    def train(k: int, state: State, config: ConfigRecord) -> State:
        keys = {"A": A_KEY, "B": B_KEY}
        # Multiples of 1/8, which all dtypes hold.
        trained = {keys[f]: torch.full_like(state[keys[f]], 0.625 * (k + 1)) for f in str(config["lora-factors"])}
        if A_KEY in trained:
            trained[A_KEY][0, k] = 4.0
        return {key: tensor if dtype is None else tensor.to(dtype) for key, tensor in trained.items()}

    return train


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("initial", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reply", [torch.float16, torch.float32, torch.float64], ids=str)
def test_arrays_keep_the_initial_dtypes(strategy: type[LoRAStrategy], initial: torch.dtype, reply: torch.dtype) -> None:
    start = INITIAL | {key: INITIAL[key].to(initial) for key in (A_KEY, B_KEY)}

    new = tensors(run(strategy(fraction_evaluate=0.0), train_in(reply), start, rounds=2))

    residuals = {key: tensor for key, tensor in new.items() if "residual" in key}
    assert {key: new[key].dtype for key in start} == {key: tensor.dtype for key, tensor in start.items()}
    assert {tensor.dtype for tensor in residuals.values()} <= {initial}
    assert bool(residuals) == (strategy is FedExLoRA)
    assert (new[STEPS], new[FROZEN]) == (start[STEPS], start[FROZEN])
    if initial is torch.float32:
        same = tensors(run(strategy(fraction_evaluate=0.0), train_in(None), start, rounds=2))
        for key in start:
            torch.testing.assert_close(new[key], same[key], rtol=0, atol=1e-6)

"""The memory limits of cached states by device, and their way back to the model's device."""

import pytest
import torch

from fedsvd.training.state_store import CPU, MemoryBudget, StateStore, concatenate, padded

GPU, META = torch.device("cuda", 0), torch.device("meta")
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_gpu_keeps_at_most_half_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))

    assert MemoryBudget(2000).fits(500, GPU)
    assert not MemoryBudget(2000).fits(501, GPU)
    assert MemoryBudget(300).fits(300, GPU)
    assert not MemoryBudget(300).fits(301, GPU)
    # The CPU has the limit as given.
    assert MemoryBudget(2000).fits(2000, torch.device("cpu"))


def test_devices_have_budgets_of_their_own_which_are_released() -> None:
    budget = MemoryBudget(80)
    store = StateStore(budget)
    store.add(b"a", torch.zeros(5, 2, device=META))
    store.add(b"b", torch.zeros(5, 2))
    assert store.states.keys() == {b"a", b"b"}
    for device in (META, CPU):
        assert (budget.fits(40, device), budget.fits(41, device)) == (True, False)
    del store
    for device in (META, CPU):
        assert (budget.fits(80, device), budget.fits(81, device)) == (True, False)


def test_states_that_do_not_fit_on_their_device_are_placed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    store, states = StateStore(MemoryBudget(39)), torch.zeros(5, 2, device=META)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.zeros(tensor.shape))
    assert StateStore(MemoryBudget(40)).place(states).device == META
    assert store.place(states).device.type == "cpu"


def test_states_are_concatenated_in_order_from_any_device() -> None:
    states = [torch.full((n, 3), float(n)) for n in (2, 1, 3)]
    assert torch.equal(concatenate(states, torch.device("cpu")), torch.cat(states))
    # A tensor without values stands for one on a GPU: the shapes and the number of transfers can be checked.
    mixed = [states[0], states[1].to(META), states[2]]
    assert concatenate(mixed, META).shape == (6, 3)
    assert concatenate(mixed, META).device == META


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_states_from_gpu_and_cpu_keep_their_order_on_the_gpu() -> None:
    states = [torch.full((n, 3), float(n)) for n in (2, 1, 3, 4)]
    mixed = [state.to(GPU) if index % 2 else state for index, state in enumerate(states)]
    assert torch.equal(concatenate(mixed, GPU).cpu(), torch.cat(states))


@pytest.mark.parametrize("device", [torch.device("cpu"), pytest.param(GPU, marks=NEEDS_GPU)])
@pytest.mark.parametrize(("counts", "length"), [([2, 3, 1], 3), ([2, 2], 2), ([1, 2], 4)])
def test_states_are_padded_with_zeros(counts: list[int], length: int, device: torch.device) -> None:
    states = [torch.full((count, 2), 1.0 + row) for row, count in enumerate(counts)]
    mask = torch.arange(length) < torch.tensor(counts).unsqueeze(1)

    result = padded(states, mask, device).cpu()

    expected = [
        [[1.0 + row] * 2 if at < count else [0.0] * 2 for at in range(length)] for row, count in enumerate(counts)
    ]
    assert result.tolist() == expected

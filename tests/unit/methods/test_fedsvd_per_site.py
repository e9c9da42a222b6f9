"""The choice of the trained factor by site: server steps by hand, and private steps of a real model."""

import pytest
import torch
from small_bert import NUM_EXAMPLES, make_losses, make_model
from torch import Tensor

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.lora import peft_model
from fedsvd.lora.adapter import Adapter
from fedsvd.lora.trained_factor import TrainedFactorMap, trains_b
from fedsvd.methods import build_method, check_method
from fedsvd.methods.aggregate import Reply
from fedsvd.methods.fedsvd_per_site import FedSVDPerSite
from fedsvd.methods.method import State
from fedsvd.privacy.dp_sgd import DPSGD, train_dp_sgd
from fedsvd.privacy.randomness import TorchRandomness
from fedsvd.training.per_example_gradients import fused_gradients

FIRST = torch.tensor([[1.0, 0.0, 0.0]])


def start() -> Adapter:
    sites = ("p", "q")
    return Adapter(
        {name: FIRST.clone() for name in sites}, {name: torch.zeros(2, 1) for name in sites}, {},
        dict.fromkeys(sites, 1.0),
    )  # fmt: skip


def step(adapter: Adapter, state: State, noise_std: float = 0.0, **updates: Tensor) -> tuple[Adapter, State]:
    """Send the update of the trained factor of each site in ``updates``; the other sites do not change."""
    parts = {"A": dict(adapter.A), "B": dict(adapter.B)}
    for name, update in updates.items():
        factor = "B" if trains_b(adapter.B[name], adapter.A[name]) else "A"
        parts[factor][name] = parts[factor][name] + update
    reply = Reply(0, 1, {"A": parts["A"], "B": parts["B"]}, noise_std)
    result = FedSVDPerSite().server_step(adapter, [reply], 1, state)
    for name in adapter.A:
        torch.testing.assert_close(result.adapter.B[name] @ result.adapter.A[name], parts["B"][name] @ parts["A"][name])
    return result.adapter, result.state


def trained(adapter: Adapter) -> str:
    return "".join("B" if trains_b(adapter.B[name], A) else "A" for name, A in adapter.A.items())


def test_each_site_trains_the_factor_with_more_progress() -> None:
    adapter, state = start(), {}
    assert trained(adapter) == "BB"
    # B moves by 4 and by 0.5.
    adapter, state = step(adapter, state, p=torch.tensor([[0.0], [4.0]]), q=torch.tensor([[0.0], [0.5]]))
    assert trained(adapter) == "AA"
    # A moves by 2: less than B did at site p, more at site q.
    adapter, state = step(adapter, state, p=torch.tensor([[0.0, 2.0, 0.0]]), q=torch.tensor([[0.0, 2.0, 0.0]]))
    assert {key: {name: float(value) for name, value in sites.items()} for key, sites in state.items()} == {
        "progress_a": {"p": 4.0, "q": 4.0}, "progress_b": {"p": 16.0, "q": 0.25},
    }  # fmt: skip
    assert trained(adapter) == "BA"
    # Now B moves by 1 at p, less than A did, and A by 0.3 at q, less than B did.
    adapter, state = step(adapter, state, p=torch.tensor([[1.0], [0.0]]), q=torch.tensor([[0.0, 0.0, 0.3]]))
    assert trained(adapter) == "AB"


def test_known_noise_is_taken_off_and_a_factor_without_progress_gives_way() -> None:
    # B has 2 entries, A has 3: with noise of variance 1 in each, an energy of 3 is progress of 1 in B and of 0 in A.
    update_b, update_a = torch.tensor([[0.0], [3**0.5]]), torch.tensor([[0.0, 3**0.5, 0.0]])
    adapter, state = step(start(), {}, 1.0, p=update_b, q=update_b * 0.5)
    adapter, state = step(adapter, state, 1.0, p=update_a, q=update_a)
    assert float(state["progress_b"]["p"]) == pytest.approx(1, abs=1e-6)
    assert float(state["progress_a"]["p"]) == pytest.approx(0, abs=1e-6)
    assert float(state["progress_b"]["q"]) == 0
    assert trained(adapter) == "BB"


def test_noise_in_a_frozen_factor_is_not_used() -> None:
    before = start()
    reply = Reply(0, 1, {
        "A": {name: A + 1 for name, A in before.A.items()}, "B": {name: B + 1 for name, B in before.B.items()}
    })  # fmt: skip
    after = FedSVDPerSite().server_step(before, [reply], 1, {}).adapter
    for name in before.A:
        torch.testing.assert_close(after.B[name] @ after.A[name], torch.ones(2, 1) @ FIRST)


def private_step(noise_multiplier: float, max_grad_norm: float) -> tuple[Adapter, Adapter]:
    model, parameters = make_model({"A", "B"})
    adapter = peft_model.read(model)
    names = list(adapter.A)
    # The first site has orthonormal columns of B, the others orthonormal rows of A.
    A = {n: 0.1 * X if n == names[0] else torch.linalg.qr(X.mT)[0].mT.contiguous() for n, X in adapter.A.items()}
    B = {n: torch.linalg.qr(X)[0] if n == names[0] else 0.1 * X for n, X in adapter.B.items()}
    adapter = adapter.with_parts({"A": A, "B": B})
    peft_model.write(model, adapter)
    train_dp_sgd(
        model, torch.optim.SGD(parameters, lr=1.0), make_losses(), NUM_EXAMPLES,
        DPSGD(noise_multiplier, max_grad_norm, 1.0, 1), TorchRandomness(0), fused_gradients,
        maps=[TrainedFactorMap.of_model(model)],
    )  # fmt: skip
    return adapter, peft_model.read(model)


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.0])
def test_a_private_step_changes_the_factor_of_each_site_that_is_not_orthonormal(noise_multiplier: float) -> None:
    before, after = private_step(noise_multiplier, 0.5)
    for number, name in enumerate(before.A):
        changed = {f: not torch.equal(before.part(f)[name], after.part(f)[name]) for f in ("A", "B")}
        assert changed == {"A": number == 0, "B": number != 0}


def test_frozen_factors_take_no_part_of_the_clipping_norm() -> None:
    # Every gradient is longer than this norm: the step is a sum of unit vectors over the trained factors alone.
    norm = 1e-6
    before, after = private_step(0.0, norm)
    model, _ = make_model({"A", "B"})
    peft_model.write(model, before)
    chosen = [("A" if number == 0 else "B", name) for number, name in enumerate(before.A)]
    expected: list[Tensor] = [torch.zeros_like(before.part(f)[n]) for f, n in chosen]
    for example in range(NUM_EXAMPLES):
        model.zero_grad()
        make_losses()(model, [example]).sum().backward()
        sites = peft_model.lora_sites(model)
        gradients = [(sites[n].A if f == "A" else sites[n].B).grad for f, n in chosen]
        assert all(g is not None for g in gradients)
        length = torch.sqrt(sum(g.square().sum() for g in gradients if g is not None))
        assert length > norm
        expected = [total + norm * g / length for total, g in zip(expected, gradients, strict=True) if g is not None]
    for (factor, name), total in zip(chosen, expected, strict=True):
        update = (after.part(factor)[name] - before.part(factor)[name]) * NUM_EXAMPLES
        torch.testing.assert_close(update, -total, rtol=0.1, atol=1e-7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.server_optimizer=momentum"], "train.server_optimizer = momentum is unsupported"),
        (["train.weight_decay=0.1", "privacy=none"], "train.weight_decay = 0.1 is unsupported"),
        (["train.momentum=0.5"], "requires a known standard deviation of the noise"),
        (["federation.secure_aggregation=true"], "requires a known standard deviation of the noise"),
        (["privacy.standardize_inputs=true"], r"unsupported with .* = fedsvd_per_site: the server must know the noise"),
    ],
)
def test_settings_that_change_frozen_factors_or_hide_the_noise_are_refused(overrides: list[str], message: str) -> None:
    config = compose(["experiment=smoke", "method=fedsvd_per_site", *overrides])
    with pytest.raises(ConfigError, match=message):
        check_method(build_method(config.method), config)


@pytest.mark.parametrize("options", [{"init_a": "kaiming"}, {"init_b": "orthonormal"}])
def test_initializations_with_which_no_factor_is_orthonormal_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="B is trained first, from zero, against an orthonormal A"):
        build_method({"name": "fedsvd_per_site", **options})

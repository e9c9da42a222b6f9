"""What every method owes, and what each one computes, by hand."""

import pytest
import torch

from fedsvd.adapter import Adapter
from fedsvd.aggregate import Reply
from fedsvd.compose import compose
from fedsvd.errors import ConfigError
from fedsvd.methods import METHODS, build_method, check_method
from fedsvd.methods.ffa_lora import FFALoRA


def make_adapter() -> Adapter:
    return Adapter(
        A={"s": torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])},
        B={"s": torch.zeros(2, 2)},
        head={},
        scale={"s": 1.0},
    )


def reply(partition_id: int, num_examples: int, **parts: torch.Tensor) -> Reply:
    return Reply(partition_id, num_examples, {name: {"s": tensor} for name, tensor in parts.items()})


@pytest.mark.parametrize("name", METHODS)
def test_contract(name: str) -> None:
    method = build_method({"name": name})
    adapter = make_adapter()
    for server_round in (1, 2, 3):
        trains, uplink = method.trains(server_round), method.uplink(server_round)
        assert uplink
        assert uplink <= trains <= {"A", "B"}
        assert method.downlink(server_round) <= {"A", "B"}
        # What the server may have changed must reach the clients in the next round.
        sent = {factor: torch.randn_like(adapter.part(factor)["s"]) for factor in uplink}
        stepped = method.server_step(adapter, [reply(0, 1, **sent)], server_round)
        changed = {
            factor for factor in ("A", "B") if not torch.equal(stepped.part(factor)["s"], adapter.part(factor)["s"])
        }
        assert changed <= method.downlink(server_round + 1)
        assert stepped.A["s"].shape == adapter.A["s"].shape
        assert stepped.B["s"].shape == adapter.B["s"].shape
        adapter = stepped


def test_ffa_lora_averages_b_and_keeps_a() -> None:
    method = build_method({"name": "ffa_lora"})
    replies = [reply(0, 1, B=torch.full((2, 2), 2.0)), reply(1, 3, B=torch.full((2, 2), 6.0))]

    stepped = method.server_step(make_adapter(), replies, 1)

    assert torch.equal(stepped.B["s"], torch.full((2, 2), 5.0))
    assert torch.equal(stepped.A["s"], make_adapter().A["s"])


def test_fedavg_lora_averages_each_factor() -> None:
    method = build_method({"name": "fedavg_lora"})
    replies = [reply(k, 1, A=torch.full((2, 3), float(k)), B=torch.full((2, 2), 2.0 * k)) for k in range(2)]

    stepped = method.server_step(make_adapter(), replies, 1)

    assert torch.equal(stepped.A["s"], torch.full((2, 3), 0.5))
    assert torch.equal(stepped.B["s"], torch.full((2, 2), 1.0))


def test_fedsvd_of_a_product_known_by_hand() -> None:
    # B A = [[0, 3, 0], [2, 0, 0]]: singular values 3 and 2 with right vectors e2 and e1.
    method = build_method({"name": "fedsvd"})
    B = torch.tensor([[0.0, 3.0], [2.0, 0.0]])

    stepped = method.server_step(make_adapter(), [reply(0, 5, B=B)], 1)

    torch.testing.assert_close(stepped.A["s"].abs(), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(stepped.B["s"].abs(), torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(stepped.B["s"] @ stepped.A["s"], torch.tensor([[0.0, 3.0, 0.0], [2.0, 0.0, 0.0]]))


def test_fedsvd_refactorizes_every_so_many_rounds() -> None:
    method = build_method({"name": "fedsvd", "refactorize_every": 2})
    B = torch.tensor([[0.0, 3.0], [2.0, 0.0]])

    first = method.server_step(make_adapter(), [reply(0, 5, B=B)], 1)
    second = method.server_step(make_adapter(), [reply(0, 5, B=B)], 2)

    assert torch.equal(first.B["s"], B)
    assert not torch.equal(second.B["s"], B)
    assert [method.downlink(r) for r in (2, 3)] == [{"B"}, {"A", "B"}]


@pytest.mark.parametrize("name", ["fedsvd", "ffa_lora"])
def test_an_a_that_clients_may_compute_otherwise_travels_from_the_first_round(name: str) -> None:
    drawn, computed = (build_method({"name": name, "init_a": init}) for init in ("orthonormal", "weight_svd"))

    assert (drawn.downlink(1), computed.downlink(1)) == ({"B"}, {"A", "B"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "fedsdv"}, "did you mean fedsvd"),
        ({"name": "fedsvd", "refactorise_every": 2}, "did you mean refactorize_every"),
        ({"name": "fedsvd", "refactorize_every": 0}, "from 1"),
        ({"name": "fedsvd", "refactorize_every": 1.5}, "whole number"),
        ({"name": "ffa_lora", "init_a": "ones"}, "kaiming, orthonormal"),
        ({"name": "ffa_lora", "init_b": "weight_svd"}, "kaiming, orthonormal, zeros"),
        ({"name": "fedavg_lora", "init_a": "zeros"}, "without a gradient"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_method(options)


class Picky(FFALoRA):
    """A method that would look at each client by itself."""

    @property
    def linear(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (["federation.secure_aggregation=true"], "federation.secure_aggregation = True"),
        (["privacy=client_level"], "privacy.name = client_level"),
    ],
)
def test_a_method_that_needs_single_updates_is_refused_where_there_are_none(overrides: list[str], setting: str) -> None:
    config = compose(["experiment=smoke", "method=ffa_lora", *overrides])
    check_method(FFALoRA(), config)
    with pytest.raises(ConfigError, match=f"{setting} is not possible with method.name = ffa_lora"):
        check_method(Picky(), config)
    check_method(Picky(), compose(["experiment=smoke", "method=ffa_lora"]))

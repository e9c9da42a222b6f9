"""The strategies as the ServerApp of a user runs them, on arrays that can be computed by hand."""

import logging
from collections.abc import Callable

import pytest
import torch
from answering_app import answering_app
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from strategy_runs import A_KEY, B_KEY, FROZEN, HEAD, INITIAL, STEPS, State, client_app, run, tensors

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, DivergedUpdateError, ModelError, PayloadError, RunError
from fedsvd.flower import FedExLoRA, FedSVD, FFALoRA, FlexLoRA, RoLoRA
from fedsvd.flower.strategy import LoRAStrategy
from fedsvd.launch.in_process import InProcessGrid
from fedsvd.lora.adapter import Adapter
from fedsvd.lora.state_dict import from_state_dict
from fedsvd.methods import build_method
from fedsvd.wire.train_messages import ClientReport, train_reply
from server.polling_grid import PollingGrid
from server.strategy import FederatedLoRA


def half_of_a_step(k: int, state: State, config: ConfigRecord) -> State:
    """B = [[1], [0]] of one example and [[1], [4]] of three: the mean is [[1], [3]]."""
    assert config["lora-factors"] == "B"
    return {
        B_KEY: torch.tensor([[1.0], [4.0 * k]]),
        HEAD: torch.tensor([4.0, 8.0 * k], dtype=torch.float16),
        STEPS: torch.tensor(7 + k),
    }


@pytest.mark.parametrize("precision", [None, torch.float32, torch.bfloat16, torch.float16])
def test_fedsvd_averages_b_and_refactorizes(precision: torch.dtype | None) -> None:
    def train(k: int, state: State, config: ConfigRecord) -> State:
        # B alone, or with A in the precision of the client's model; NumPy has no bfloat16.
        kept = {} if precision is None else {A_KEY: state[A_KEY].to(precision)}
        if precision is torch.bfloat16:
            kept[A_KEY] = kept[A_KEY].float()
        return half_of_a_step(k, state, config) | kept

    result = run(FedSVD(fraction_evaluate=0.0), train)

    new = tensors(result)
    torch.testing.assert_close(new[A_KEY], torch.tensor([[0.6, 0.8, 0.0]]))
    torch.testing.assert_close(new[B_KEY], torch.tensor([[0.5], [1.5]]))
    # (1·4 + 3·4) / 4 and (1·0 + 3·8) / 4; (1·7 + 3·8) / 4, rounded; what was not sent stays.
    torch.testing.assert_close(new[HEAD], torch.tensor([4.0, 6.0], dtype=torch.float16))
    assert torch.equal(new[STEPS], torch.tensor(8))
    assert torch.equal(new[FROZEN], torch.ones(1))
    assert list(new) == list(INITIAL)
    assert result.train_metrics_clientapp[1] == {"loss": 0.75}


def test_ffa_lora_averages_b() -> None:
    new = tensors(run(FFALoRA(fraction_evaluate=0.0), half_of_a_step))

    assert torch.equal(new[A_KEY], INITIAL[A_KEY])
    torch.testing.assert_close(new[B_KEY], torch.tensor([[1.0], [3.0]]))


def test_rolora_alternates_and_says_so() -> None:
    def train(k: int, state: State, config: ConfigRecord) -> State:
        trained = str(config["lora-factors"])
        assert trained == "BA"[(int(config["server-round"]) - 1) % 2]
        key = A_KEY if trained == "A" else B_KEY
        return state | {key: state[key] + 4 * k}

    new = tensors(run(RoLoRA(fraction_evaluate=0.0), train, rounds=3))

    # Each round adds (1·0 + 3·4) / 4.
    torch.testing.assert_close(new[A_KEY], INITIAL[A_KEY] + 3)
    torch.testing.assert_close(new[B_KEY], INITIAL[B_KEY] + 6)


def orthogonal_products(k: int, state: State, config: ConfigRecord) -> State:
    """B A is diag(8, 0, 0) of one example and diag(0, 8, 0) of three: the mean is diag(2, 6, 0)."""
    assert config["lora-factors"] == "AB"
    return {A_KEY: torch.eye(3)[k : k + 1], B_KEY: 8 * torch.eye(2)[:, k : k + 1]}


def test_flexlora_truncates_the_mean_product() -> None:
    new = tensors(run(FlexLoRA(fraction_evaluate=0.0), orthogonal_products))

    torch.testing.assert_close(new[B_KEY] @ new[A_KEY], torch.tensor([[0.0, 0.0, 0.0], [0.0, 6.0, 0.0]]))


def test_fedex_lora_sends_what_the_means_lack() -> None:
    received: list[State] = []

    def train(k: int, state: State, config: ConfigRecord) -> State:
        received.append(state)
        return orthogonal_products(k, state, config)

    new = tensors(run(FedExLoRA(fraction_evaluate=0.0), train, rounds=2))

    left, right = (A_KEY.replace("lora_A", f"lora_residual_{part}") for part in "BA")
    # The second round adds to the residual of the first.
    assert received[-1][left].shape == (2, 2)
    first = received[-1][B_KEY] @ received[-1][A_KEY] + received[-1][left] @ received[-1][right]
    mean = torch.tensor([[2.0, 0.0, 0.0], [0.0, 6.0, 0.0]])
    torch.testing.assert_close(first, mean)
    residual = first - received[-1][B_KEY] @ received[-1][A_KEY]
    torch.testing.assert_close(new[B_KEY] @ new[A_KEY] + new[left] @ new[right], mean + residual)


def test_three_rounds_equal_those_of_fedsvds_own_strategy() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = {f"layer{i}": (torch.randn(2, 6, generator=generator), torch.zeros(5, 2)) for i in range(3)}
    replies = torch.randn(3, 4, 3 * 10, generator=generator)

    adapter = Adapter(
        A={name: A for name, (A, _) in factors.items()}, B={name: B for name, (_, B) in factors.items()}, head={},
        scale=dict.fromkeys(factors, 1.0),
    )  # fmt: skip
    config = compose(
        ["experiment=smoke", "train.head=frozen", "privacy=none", "train.num_rounds=3", "federation.num_clients=4"]
    )
    own = FederatedLoRA(build_method(config.method), config, adapter)
    app = answering_app(
        lambda k, task, _: train_reply(
            ClientReport(k, 2 * k + 1, 0.1, server_round=task.server_round),
            ArrayRecord({"B": Array(replies[task.server_round - 1, k].numpy())}),
        )
    )
    grid = PollingGrid(InProcessGrid(app, 4, {}), lambda reply: None)
    for server_round in (1, 2, 3):
        messages = own.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
        own.aggregate_train(server_round, grid.send_and_receive(messages, timeout=5))

    def train(k: int, state: State, config: ConfigRecord) -> State:
        values = replies[int(config["server-round"]) - 1, k].reshape(3, 5, 2)
        return {f"{name}.lora_B.weight": value for name, value in zip(factors, values, strict=True)}

    state = {f"{name}.lora_{'AB'[i]}.weight": pair[i] for name, pair in factors.items() for i in (0, 1)}
    new = from_state_dict(tensors(run(FedSVD(fraction_evaluate=0.0), train, state, rounds=3, clients=4)))

    assert not own.round.skipped
    for name in factors:
        torch.testing.assert_close(new.A[f"{name}.lora_*.weight"], own.adapter.A[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(new.B[f"{name}.lora_*.weight"], own.adapter.B[name], rtol=0, atol=1e-6)


WRONG: dict[str, tuple[type[LoRAStrategy], Callable[[State], State], type[Exception], str]] = {
    "a trained A": (FedSVD, lambda s: s | {A_KEY: s[A_KEY] + 0.01}, PayloadError, f"{A_KEY} differs .*train_factors"),
    "no B": (FFALoRA, lambda s: {A_KEY: s[A_KEY]}, PayloadError, f"{B_KEY} is missing: clients train factor B"),
    "B alone": (FlexLoRA, lambda s: {B_KEY: s[B_KEY]}, PayloadError, f"{A_KEY} is missing: clients train factor A"),
    "another rank": (
        FedSVD,
        lambda s: s | {B_KEY: torch.ones(2, 2)},
        PayloadError,
        r"shape \(2, 2\): expected \(2, 1\)",
    ),
    "unknown": (
        FedSVD,
        lambda s: s | {"w": torch.ones(1)},
        PayloadError,
        "w is unknown: expected some of the 5 arrays",
    ),
    "nan": (FedSVD, lambda s: s | {HEAD: s[HEAD] * torch.nan}, DivergedUpdateError, f"{HEAD} has 2 values"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_unusable_reply_is_left_out_and_nothing_else_is_an_error(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, spoil, error, message = WRONG[name]
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)

    with pytest.raises(error, match=message):
        run(strategy(fraction_evaluate=0.0), lambda k, state, config: spoil(state))

    def train(k: int, state: State, config: ConfigRecord) -> State:
        return spoil(state) if k == 0 else state | {B_KEY: state[B_KEY] + 1}

    new = tensors(run(strategy(fraction_evaluate=0.0), train))
    torch.testing.assert_close(new[B_KEY] @ new[A_KEY], torch.tensor([[0.3, 0.4, 0.0]] * 2))
    assert "Left out the reply of node 2" in caplog.text


@pytest.mark.parametrize(("weight", "error"), [(-1, PayloadError), (float("nan"), PayloadError), (0, RunError)])
def test_weights_that_no_mean_has_are_refused(weight: float, error: type[Exception]) -> None:
    grid = InProcessGrid(client_app(half_of_a_step, **{"num-examples": weight}), 2, {})
    with pytest.raises(error, match=r"num-examples is (-1|nan|0)"):
        FedSVD(fraction_evaluate=0.0).start(grid, ArrayRecord(INITIAL), num_rounds=1)


def test_the_options_of_fedavg_are_kept() -> None:
    sampled: list[int] = []

    def train(k: int, state: State, config: ConfigRecord) -> State:
        sampled.append(k)
        return {B_KEY: torch.full((2, 1), float(k))}

    strategy = FFALoRA(
        fraction_train=0.5, min_train_nodes=1, fraction_evaluate=0.0, weighted_by_key="loss", arrayrecord_key="weights",
        train_metrics_aggr_fn=lambda contents, key: MetricRecord({"replies": len(contents), key: 1}),
    )  # fmt: skip
    result = run(strategy, train, clients=4)

    assert len(sampled) == 2
    assert result.train_metrics_clientapp[1] == {"replies": 2, "loss": 1}
    expected = sum(k * k for k in sampled) / sum(sampled)
    torch.testing.assert_close(tensors(result)[B_KEY], torch.full((2, 1), expected))


def test_failed_clients_and_rounds_without_replies_leave_the_arrays() -> None:
    def train(k: int, state: State, config: ConfigRecord) -> State:
        if k == 0 or config["server-round"] == 2:
            raise ValueError("broken disk")
        return {B_KEY: torch.ones(2, 1)}

    new = tensors(run(FFALoRA(fraction_evaluate=0.0), train, rounds=2))

    torch.testing.assert_close(new[B_KEY], torch.ones(2, 1))


def test_wrong_uses_are_refused() -> None:
    with pytest.raises(ModelError, match="no LoRA factors"):
        run(FedSVD(), half_of_a_step, {HEAD: torch.ones(2)})
    with pytest.raises(RunError, match="before configure_train"):
        FedSVD().aggregate_train(1, [])
    for pivot in ("A", "AB", "", "b"):
        with pytest.raises(ConfigError, match=rf"^pivot = '{pivot}' is invalid: .* B first, as in B, BA or BAAA"):
            FedSVD(pivot=pivot)
    grid = InProcessGrid(client_app(half_of_a_step), 2, {})
    with pytest.raises(PayloadError, match="the array q cannot be read"):
        FedSVD().start(grid, ArrayRecord({"q": Array("float32", (1,), "numpy.ndarray", b"x")}), num_rounds=1)

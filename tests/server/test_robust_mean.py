"""The running mean and the robust means: examples by hand, and properties."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, RunError
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method, check_method
from fedsvd.methods.aggregate import Reply, average, mean_noise_std
from server.reply_aggregation import aggregate_replies, min_replies
from server.robust_mean import median, trimmed_mean
from server.running_mean import running_mean


def make_adapter(rows: int = 1, rank: int = 2) -> Adapter:
    return Adapter(A={"s": torch.eye(rank, 3)}, B={"s": torch.full((rows, rank), 7.0)}, head={}, scale={"s": 1.0})


def reply(partition_id: int, num_examples: int, *rows: list[float], noise_std: float = 0.0) -> Reply:
    return Reply(partition_id, num_examples, {"B": {"s": torch.tensor(rows)}}, noise_std)


def test_median_by_hand() -> None:
    replies = [reply(0, 1, [1.0, 9.0]), reply(1, 10**6, [5.0, -4.0]), reply(2, 1, [3.0, 2.0])]

    assert median(make_adapter(), replies).parts["B"]["s"].tolist() == [[3.0, 2.0]]
    # For an even number of replies, the mean of the middle two: (1 + 3) / 2 and (2 + 9) / 2.
    assert median(make_adapter(), [replies[0], replies[2]]).parts["B"]["s"].tolist() == [[2.0, 5.5]]


def test_trimmed_mean_by_hand() -> None:
    replies = [reply(k, 1, [value, -value]) for k, value in enumerate([1.0, 2.0, 6.0, 7.0, 1e9])]

    # (2 + 6 + 7) / 3.
    assert trimmed_mean(make_adapter(), replies, 1).parts["B"]["s"].tolist() == [[5.0, -5.0]]
    assert trimmed_mean(make_adapter(), replies, 2).parts["B"]["s"].tolist() == [[6.0, -6.0]]
    with pytest.raises(RunError, match="cannot trim 3 of 5 replies at each end: expected 7 or more"):
        trimmed_mean(make_adapter(), replies, 3)


def test_as_many_replies_are_trimmed_if_replies_are_missing() -> None:
    # A quarter of 8 clients: 2 at each end, whoever replies.
    config = compose(["aggregation=trimmed_mean", "aggregation.trim_share=0.25", "federation.num_clients=8"])
    replies = [reply(k, 1, [value, -value]) for k, value in enumerate([1e9, 1e9, 1.0, 2.0, 4.0])]

    def aggregate(count: int) -> list[list[list[float]]]:
        aggregated = aggregate_replies(replies[:count], make_adapter(), build_method(config.method), config)
        return [one.parts["B"]["s"].tolist() for one in aggregated]

    # Of 1, 2, 4 and two false values, 4 is left.
    assert (min_replies(config, 8), aggregate(5)) == (5, [[[4.0, -4.0]]])
    assert aggregate(4) == []


def test_settings_that_require_replies() -> None:
    def required(*overrides: str) -> int:
        return min_replies(compose(["federation.num_clients=8", *overrides]), 7)

    assert required() == required("aggregation=median") == 1
    # 0.3 · 7 = 2.1.
    assert required("federation.min_replies=2", "federation.min_completion=0.3") == 3
    assert required("federation.min_replies=4", "federation.min_completion=0.3") == 4
    assert required("federation.min_replies=4", "aggregation=trimmed_mean") == 5


@pytest.mark.parametrize(
    ("share", "clients", "needed"),
    [("0.56", 25, 14), ("0.07", 100, 7), ("0.6666666666666667", 3, 2), ("0.57", 25, 15), ("1", 7, 7)],
)
def test_a_share_that_is_a_whole_number_of_clients_is_not_rounded_up(share: str, clients: int, needed: int) -> None:
    config = compose([f"federation.num_clients={clients}", f"federation.min_completion={share}"])
    assert min_replies(config, clients) == needed


@pytest.mark.parametrize(
    ("share", "clients", "trimmed"), [("0.29", 100, 29), ("0.3333333333333333", 3, 1), ("0.28", 25, 7), ("0.27", 25, 6)]
)
def test_a_share_that_is_a_whole_number_of_clients_is_not_rounded_down(share: str, clients: int, trimmed: int) -> None:
    config = compose(
        ["aggregation=trimmed_mean", f"aggregation.trim_share={share}", f"federation.num_clients={clients}"]
    )
    assert config.aggregation.num_trimmed(clients) == trimmed
    assert min_replies(config, clients) == 2 * trimmed + 1


def test_entries_that_a_lower_rank_client_lacks_keep_their_start_value() -> None:
    replies = [reply(0, 1, [1.0]), reply(1, 1, [3.0]), reply(2, 2, [2.0, 100.0])]

    assert median(make_adapter(), replies).parts["B"]["s"].tolist() == [[2.0, 7.0]]
    # (1 + 3 + 2 · 2) / 4 and (7 + 7 + 2 · 100) / 4.
    assert running_mean(make_adapter(), replies).reply.parts["B"]["s"].tolist() == [[2.0, 53.5]]


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
@given(seed=st.integers(0, 10_000), malicious=st.integers(0, 3))
@settings(max_examples=25)
def test_few_malicious_clients_cannot_move_a_coordinate_beyond_the_honest_values(
    name: str, seed: int, malicious: int
) -> None:
    rng = random.Random(seed)
    honest = [[rng.gauss(0, 1) for _ in range(4)] for _ in range(7)]
    false_values = [[rng.choice([-1e30, 1e30, 0.0]) for _ in range(4)] for _ in range(malicious)]
    sent = [*honest, *false_values]
    rng.shuffle(sent)
    replies = [
        reply(k, 10**6 if values in false_values else 1, values[:2], values[2:]) for k, values in enumerate(sent)
    ]
    adapter = make_adapter(rows=2)

    result = (median(adapter, replies) if name == "median" else trimmed_mean(adapter, replies, 3)).parts["B"]["s"]

    bounds = torch.tensor(honest).reshape(7, 2, 2)
    assert bool((result >= bounds.amin(0) - 1e-12).all())
    assert bool((result <= bounds.amax(0) + 1e-12).all())


@given(st.lists(st.tuples(st.integers(1, 2**20), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=30))
@settings(max_examples=50)
def test_running_mean_is_the_mean_in_any_order(clients: list[tuple[int, float]]) -> None:
    replies = [reply(k, n, [x, -x], noise_std=abs(x)) for k, (n, x) in enumerate(clients)]
    adapter = make_adapter()
    shuffled = random.Random(0).sample(replies, len(replies))

    one, other = running_mean(adapter, replies).reply, running_mean(adapter, shuffled).reply

    assert torch.equal(one.parts["B"]["s"].float(), other.parts["B"]["s"].float())
    assert one.num_examples == sum(n for n, _ in clients)
    assert one.noise_std == pytest.approx(mean_noise_std(replies), rel=1e-9, abs=1e-12)
    expected = average(adapter, replies).B["s"]
    torch.testing.assert_close(average(adapter, [one]).B["s"], expected, rtol=1e-6, atol=1e-6)


def test_averaging_without_replies_raises() -> None:
    with pytest.raises(RunError, match="0 replies"):
        _ = running_mean(make_adapter(), []).reply
    with pytest.raises(RunError, match="different parts"):
        running_mean(make_adapter(), [reply(0, 1, [1.0, 1.0]), Reply(1, 1, {"A": {"s": torch.eye(2, 3)}})])
    with pytest.raises(RunError, match="at least 1"):
        median(make_adapter(), [])


def test_mean_stores_no_replies() -> None:
    alive: list[int] = []

    class CountedReply(Reply):
        def __del__(self) -> None:
            alive.remove(self.partition_id)

    def arriving() -> object:
        for k in range(50):
            alive.append(k)
            yield CountedReply(k, 1, {"B": {"s": torch.full((1, 2), float(k))}})
            # At most the reply that the consuming loop still references.
            assert len(alive) <= 1

    config = compose(["method=ffa_lora"])
    aggregated = aggregate_replies(arriving(), make_adapter(), build_method(config.method), config)  # type: ignore[arg-type]

    assert [r.num_examples for r in aggregated] == [50]
    assert aggregated[0].parts["B"]["s"].tolist() == [[24.5, 24.5]]


POISONED = {"mean": 1e3, "median": 1.0, "trimmed_mean": 1.0}


@pytest.mark.parametrize("name", POISONED)
def test_poisoned_clients_move_the_mean_but_not_the_robust_means(name: str) -> None:
    config = compose([f"aggregation={name}", "aggregation.trim_share=0.3", "federation.num_clients=10"])
    honest = [reply(k, 100, [1.0 + 0.01 * k, -1.0 - 0.01 * k]) for k in range(7)]
    poisoned = [reply(k, 10_000, [-5e3, 5e3]) for k in range(7, 10)]
    adapter = make_adapter()

    aggregated = aggregate_replies([*honest, *poisoned], adapter, build_method(config.method), config)
    distance = float((average(adapter, aggregated).B["s"] - torch.tensor([[1.0, -1.0]])).norm())

    assert (distance > 1000) if name == "mean" else (distance < 0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["aggregation=median", "federation.secure_aggregation=true"], "not possible with federation.secure_agg"),
        (["aggregation=trimmed_mean", "federation.num_clients=3"], "drops none of the 3 clients"),
        (["aggregation=median", "privacy=client_level", "federation.num_clients=10"], "privacy.name = client_level"),
        (["aggregation=median", "federation.weighting=inverse_variance"], "weighting = inverse_variance has no effect"),
        (["aggregation.trim_share=0.5"], "trim_share = 0.5 is invalid"),
    ],
)
def test_settings_that_robust_aggregation_does_not_support_are_configuration_errors(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(overrides)


@pytest.mark.parametrize("overrides", [["method=flora"], ["method=fedsvd", "method.shrinkage=optimal"]])
def test_methods_that_need_all_replies_do_not_support_robust_aggregation(overrides: list[str]) -> None:
    config = compose([*overrides, "aggregation=median"])
    with pytest.raises(ConfigError, match=r"aggregation\.name = median"):
        check_method(build_method(config.method), config)


def test_trimmed_mean_increases_with_the_values() -> None:
    values = [trimmed_mean(make_adapter(), [reply(k, 1, [float(k), 0.0]) for k in range(n)], 1) for n in range(5, 9)]
    assert all(a.parts["B"]["s"][0, 0] < b.parts["B"]["s"][0, 0] for a, b in pairwise(values))

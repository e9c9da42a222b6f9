"""Means that need no replies kept, and means that hold against liars: by hand, and as properties."""

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
from server.reply_aggregation import aggregate_replies
from server.robust_mean import median, trimmed_mean
from server.running_mean import running_mean


def make_adapter(rows: int = 1, rank: int = 2) -> Adapter:
    return Adapter(A={"s": torch.eye(rank, 3)}, B={"s": torch.full((rows, rank), 7.0)}, head={}, scale={"s": 1.0})


def reply(partition_id: int, num_examples: int, *rows: list[float], noise_std: float = 0.0) -> Reply:
    return Reply(partition_id, num_examples, {"B": {"s": torch.tensor(rows)}}, noise_std)


def test_the_median_is_that_of_each_coordinate() -> None:
    replies = [reply(0, 1, [1.0, 9.0]), reply(1, 10**6, [5.0, -4.0]), reply(2, 1, [3.0, 2.0])]

    assert median(make_adapter(), replies).parts["B"]["s"].tolist() == [[3.0, 2.0]]
    # Of an even number, the mean of the middle two: (1 + 3) / 2 and (2 + 9) / 2.
    assert median(make_adapter(), [replies[0], replies[2]]).parts["B"]["s"].tolist() == [[2.0, 5.5]]


def test_the_trimmed_mean_leaves_out_as_many_at_each_end() -> None:
    replies = [reply(k, 1, [value, -value]) for k, value in enumerate([1.0, 2.0, 6.0, 7.0, 1e9])]

    # 0.2 · 5 = 1 at each end: (2 + 6 + 7) / 3.
    assert trimmed_mean(make_adapter(), replies, 0.2).parts["B"]["s"].tolist() == [[5.0, -5.0]]
    # 0.49 · 5 = 2.45: two at each end.
    assert trimmed_mean(make_adapter(), replies, 0.49).parts["B"]["s"].tolist() == [[6.0, -6.0]]


def test_a_client_of_a_lower_rank_leaves_the_rest_where_it_was() -> None:
    replies = [reply(0, 1, [1.0]), reply(1, 1, [3.0]), reply(2, 2, [2.0, 100.0])]

    assert median(make_adapter(), replies).parts["B"]["s"].tolist() == [[2.0, 7.0]]
    # (1 + 3 + 2 · 2) / 4 and (7 + 7 + 2 · 100) / 4.
    assert running_mean(make_adapter(), replies).reply.parts["B"]["s"].tolist() == [[2.0, 53.5]]


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
@given(seed=st.integers(0, 10_000), liars=st.integers(0, 3))
@settings(deadline=None, max_examples=25)
def test_few_liars_cannot_move_any_coordinate_beyond_the_honest(name: str, seed: int, liars: int) -> None:
    chance = random.Random(seed)
    honest = [[chance.gauss(0, 1) for _ in range(4)] for _ in range(7)]
    lies = [[chance.choice([-1e30, 1e30, 0.0]) for _ in range(4)] for _ in range(liars)]
    sent = [*honest, *lies]
    chance.shuffle(sent)
    replies = [reply(k, 10**6 if values in lies else 1, values[:2], values[2:]) for k, values in enumerate(sent)]
    adapter = make_adapter(rows=2)

    found = (median(adapter, replies) if name == "median" else trimmed_mean(adapter, replies, 0.3)).parts["B"]["s"]

    bounds = torch.tensor(honest).reshape(7, 2, 2)
    assert bool((found >= bounds.amin(0) - 1e-12).all())
    assert bool((found <= bounds.amax(0) + 1e-12).all())


@given(st.lists(st.tuples(st.integers(1, 2**20), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=50)
def test_the_running_mean_is_the_mean_and_knows_no_order(clients: list[tuple[int, float]]) -> None:
    replies = [reply(k, n, [x, -x], noise_std=abs(x)) for k, (n, x) in enumerate(clients)]
    adapter = make_adapter()
    shuffled = random.Random(0).sample(replies, len(replies))

    one, other = running_mean(adapter, replies).reply, running_mean(adapter, shuffled).reply

    assert torch.equal(one.parts["B"]["s"].float(), other.parts["B"]["s"].float())
    assert one.num_examples == sum(n for n, _ in clients)
    assert one.noise_std == pytest.approx(mean_noise_std(replies), rel=1e-9, abs=1e-12)
    expected = average(adapter, replies).B["s"]
    torch.testing.assert_close(average(adapter, [one]).B["s"], expected, rtol=1e-6, atol=1e-6)


def test_nothing_cannot_be_averaged() -> None:
    with pytest.raises(RunError, match="0 replies"):
        _ = running_mean(make_adapter(), []).reply
    with pytest.raises(RunError, match="different parts"):
        running_mean(make_adapter(), [reply(0, 1, [1.0, 1.0]), Reply(1, 1, {"A": {"s": torch.eye(2, 3)}})])
    with pytest.raises(RunError, match="at least 1"):
        median(make_adapter(), [])


def test_a_mean_keeps_no_reply_while_the_next_one_comes() -> None:
    alive: list[int] = []

    class Counted(Reply):
        def __del__(self) -> None:
            alive.remove(self.partition_id)

    def coming() -> object:
        for k in range(50):
            alive.append(k)
            yield Counted(k, 1, {"B": {"s": torch.full((1, 2), float(k))}})
            # At most the one that the loop over us still names.
            assert len(alive) <= 1

    config = compose(["method=ffa_lora"])
    found = aggregate_replies(coming(), make_adapter(), build_method(config.method), config.aggregation)  # type: ignore[arg-type]

    assert [r.num_examples for r in found] == [50]
    assert found[0].parts["B"]["s"].tolist() == [[24.5, 24.5]]


POISONED = {"mean": 1e3, "median": 1.0, "trimmed_mean": 1.0}


@pytest.mark.parametrize("name", POISONED)
def test_poisoned_clients_carry_a_mean_away_and_no_robust_one(name: str) -> None:
    config = compose([f"aggregation={name}", "aggregation.trim_share=0.3", "federation.num_clients=10"])
    honest = [reply(k, 100, [1.0 + 0.01 * k, -1.0 - 0.01 * k]) for k in range(7)]
    poisoned = [reply(k, 10_000, [-5e3, 5e3]) for k in range(7, 10)]
    adapter = make_adapter()

    found = aggregate_replies([*honest, *poisoned], adapter, build_method(config.method), config.aggregation)
    distance = float((average(adapter, found).B["s"] - torch.tensor([[1.0, -1.0]])).norm())

    assert (distance > 1000) if name == "mean" else (distance < 0.1)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["aggregation=median", "federation.secure_aggregation=true"], "not possible with federation.secure_agg"),
        (["aggregation=trimmed_mean", "federation.num_clients=3"], "cuts off nobody of the 3 clients"),
        (["aggregation=median", "privacy=client_level", "federation.num_clients=10"], "privacy.name = client_level"),
        (["aggregation.trim_share=0.5"], "trim_share = 0.5 is not allowed"),
    ],
)
def test_what_needs_each_update_is_refused_where_there_is_a_sum_alone(words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        compose(words)


@pytest.mark.parametrize("words", [["method=flora"], ["method=fedsvd", "method.shrinkage=optimal"]])
def test_methods_that_need_more_than_a_mean_refuse_robust_ones(words: list[str]) -> None:
    config = compose([*words, "aggregation=median"])
    with pytest.raises(ConfigError, match=r"aggregation\.name = median"):
        check_method(build_method(config.method), config)


def test_values_around_the_middle_are_in_order() -> None:
    values = [trimmed_mean(make_adapter(), [reply(k, 1, [float(k), 0.0]) for k in range(n)], 0.2) for n in range(5, 9)]
    assert all(a.parts["B"]["s"][0, 0] < b.parts["B"]["s"][0, 0] for a, b in pairwise(values))

"""The downlink of rounds that train the head alone: no client is sent a factor before one is trained."""

import pytest
import torch
from flwr.app import RecordDict

from client.factor_cache import receive_factors
from fedsvd.config.compose import compose
from fedsvd.lora.adapter import Adapter, Part, truncate_rank
from fedsvd.methods import Step, build_run_method
from fedsvd.wire.train_messages import TrainTask
from server.downlink import Downlink

HEAD: frozenset[Part] = frozenset({"head"})
B: frozenset[Part] = frozenset({"B"})
RUN = ["experiment=smoke", "train.head=private", "model.rank=4", "federation.client_ranks=[2,4]"]


def make_adapter() -> Adapter:
    return Adapter({"q": torch.eye(4, 6)}, {"q": torch.zeros(5, 4)}, {"w": torch.ones(3)}, {"q": 1.0})


@pytest.mark.parametrize("rank", [2, None])
def test_a_run_of_the_head_alone_sends_no_factor(rank: int | None) -> None:
    method = build_run_method(compose([*RUN, "train.trains=head"]))
    own = truncate_rank(make_adapter(), rank or 4)

    request = Downlink(method, make_adapter()).request(7, TrainTask(1, HEAD, HEAD), HEAD, rank)
    received = receive_factors(request.task, request.factors, RecordDict(), own, method, torch.device("cpu"))

    assert set(request.factors) == {"head"}
    assert torch.equal(received.A["q"], own.A["q"])


def test_a_client_of_a_lower_rank_is_sent_the_factors_from_the_round_that_needs_them() -> None:
    method = build_run_method(compose([*RUN, "method=ffa_lora", "train.head_rounds=1"]))
    downlink = Downlink(method, make_adapter())

    assert set(downlink.request(7, TrainTask(1, HEAD, HEAD), HEAD, 2).factors) == {"head"}
    assert set(downlink.request(7, TrainTask(2, B, B), HEAD, 2).factors) == {"A", "B", "head"}
    downlink.advance(Step(make_adapter().with_parts({"B": {"q": torch.ones(5, 4)}})), 2)
    assert set(downlink.request(7, TrainTask(3, HEAD, HEAD), HEAD, 2).factors) == {"A", "B", "head"}


def test_factors_with_a_product_other_than_zero_are_sent_in_rounds_of_the_head() -> None:
    method = build_run_method(compose([*RUN, "method=ffa_lora", "method.init_b=kaiming", "train.head_rounds=1"]))

    request = Downlink(method, make_adapter()).request(7, TrainTask(1, HEAD, HEAD), HEAD, 2)

    assert set(request.factors) == {"A", "B", "head"}

"""Single functions of the checks of replies, with numbers by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedsvd.compat.flower import set_task_identity
from fedsvd.config.compose import compose
from fedsvd.errors import DivergedError
from fedsvd.lora.adapter import Adapter
from fedsvd.methods import build_method
from fedsvd.methods.aggregate import Reply
from fedsvd.privacy.clipping_statistics import GRADIENT_NOISE_FACTOR
from fedsvd.secagg import messages
from fedsvd.wire import train_messages
from fedsvd.wire.train_messages import ClientReport
from server.clients import Clients
from server.replies import (
    RoundRecord,
    check_divergence,
    read_masked_reply,
    read_plain_reply,
    report_noise_std,
    valid_replies,
)
from server.reply_aggregation import aggregate_replies
from server.robust_mean import median
from server.running_mean import running_mean

SIGMA, CLIP, RATE, STEPS = 0.5, 2.0, 0.25, 4
OVERRIDES = [
    "experiment=smoke", "privacy.accountant=rdp", f"privacy.max_grad_norm={CLIP}", f"train.local_steps={STEPS}",
    f"train.learning_rate={RATE}",
]  # fmt: skip

# Two sites of rank 2 with one output each.
ADAPTER = Adapter(
    A={name: torch.eye(2, 3) for name in "st"},
    B={name: torch.zeros(1, 2) for name in "st"},
    head={},
    scale=dict.fromkeys("st", 1.0),
)


def report(**changes: float | None) -> ClientReport:
    values = {"num_examples": 400, "noise_multiplier": SIGMA, "sample_rate": 0.125, **changes}
    return ClientReport(3, seconds=0.1, **values)  # type: ignore[arg-type]


def noise_std(changes: dict[str, float | None], overrides: Sequence[str] = ()) -> float:
    return report_noise_std(report(**changes), compose([*OVERRIDES, *overrides]), 1)


def test_noise_of_a_reply_by_hand() -> None:
    # η σ C √T / (q n) = 0.25 · 0.5 · 2 · 2 / 50.
    assert noise_std({}) == pytest.approx(0.01, rel=1e-12)
    assert noise_std({"clipped_share": 0.5}) == pytest.approx(0.01 * GRADIENT_NOISE_FACTOR, rel=1e-12)
    for missing in ("noise_multiplier", "sample_rate", "num_examples"):
        assert noise_std({missing: None}) == 0
    for overrides in (["privacy=none"], ["train.momentum=0.5"], ["train=adamw"]):
        assert noise_std({}, overrides) == 0


def test_masked_reply_has_the_client_and_the_size_of_the_vector() -> None:
    set_task_identity(1, 7, 1)
    content = train_messages.train_reply(report(), ArrayRecord())
    masked = messages.masked_reply(np.arange(5, dtype=np.uint64), content)
    request = Message(RecordDict(), 2, "train")
    assert read_masked_reply(Message(masked, reply_to=request), 3) == (Reply(3, 1, {}), report(), 5 * 8 + 128)


@pytest.mark.parametrize(("sampled", "diverged"), [(1, 1), (3, 3)])
def test_round_without_any_usable_update_ends_the_run(sampled: int, diverged: int) -> None:
    config = compose(OVERRIDES)
    check_divergence(RoundRecord(1, sampled, diverged=diverged - 1), config)
    check_divergence(RoundRecord(1, 0), config)
    with pytest.raises(DivergedError, match=f"all {sampled} updates of round 1 .* train.learning_rate"):
        check_divergence(RoundRecord(1, sampled, diverged=diverged), config)


def test_declined_updates_that_diverged_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    set_task_identity(1, 7, 1)
    clients, record = Clients(compose(OVERRIDES).federation), RoundRecord(4, 3)
    clients.partitions = {2: 0, 3: 1, 4: 2}
    reasons = {2: "DivergedError: not finite", 3: "DataError: no DivergedError", 4: "DivergedError: too large"}
    reasons[9] = "DivergedError: of another run"
    replies = [
        Message(train_messages.declined_reply(reason), reply_to=Message(RecordDict(), node, "train"))
        for node, reason in reasons.items()
    ]

    assert not list(valid_replies(replies, record, clients, pytest.fail))  # type: ignore[arg-type]

    assert (record.diverged, record.dropped) == (2, 4)
    assert [line.partition(": the")[0] for line in caplog.messages] == [
        f"round 4: dropped the reply of {sender}" for sender in ("client 0", "client 1", "client 2", "node 9")
    ]


def test_median_of_one_reply_is_that_reply() -> None:
    values = torch.tensor([[math.pi, -1.0]])
    result = median(ADAPTER, [Reply(5, 7, {"B": {"s": values, "t": values}})])
    assert (result.partition_id, result.num_examples) == (0, 7)
    assert torch.equal(result.parts["B"]["t"].float(), values)


def test_replies_are_aggregated_as_configured() -> None:
    replies = [Reply(k, 1, {"B": {name: torch.tensor([[x, 0.0]]) for name in "st"}}) for k, x in enumerate((1, 2, 9))]

    def first(aggregation: str, method: str) -> list[float]:
        config = compose([f"aggregation={aggregation}", f"method={method}", "federation.num_clients=5"])
        aggregated = aggregate_replies(replies, ADAPTER, build_method(config.method), config)
        return [float(reply.parts["B"]["t"][0, 0]) for reply in aggregated]

    assert first("mean", "ffa_lora") == [4.0]
    assert first("mean", "flora") == [1.0, 2.0, 9.0]
    assert first("median", "ffa_lora") == [2.0]
    # A quarter of 5 clients, rounded down, is one: 2 is left.
    assert first("trimmed_mean", "ffa_lora") == [2.0]


def test_running_mean_keeps_what_a_sum_would_lose() -> None:
    small = 2.0**-60
    replies = [
        Reply(k, 1, {"B": {name: torch.tensor([[x, x]]) for name in "st"}}) for k, x in enumerate((1, small, -1))
    ]
    assert running_mean(ADAPTER, replies).reply.parts["B"]["t"].tolist() == [[small / 3, small / 3]]


def test_plain_reply_has_what_the_client_sent() -> None:
    set_task_identity(1, 7, 1)
    config = compose([*OVERRIDES, "privacy.noise_multiplier=0.5", "train.batch_size=50"])
    factors = ArrayRecord({"B": Array(np.arange(4, dtype=np.float32) / 8)})
    message = Message(train_messages.train_reply(report(), factors), reply_to=Message(RecordDict(), 2, "train"))

    reply, read_report, size = read_plain_reply(message, 3, frozenset({"B"}), ADAPTER, config, 1)

    assert (reply.partition_id, reply.num_examples, read_report, size) == (3, 400, report(), 4 * 4 + 128)
    assert reply.noise_std == pytest.approx(0.01, rel=1e-12)
    assert {name: values.tolist() for name, values in reply.parts["B"].items()} == {
        "s": [[0, 0.125]], "t": [[0.25, 0.375]]
    }  # fmt: skip

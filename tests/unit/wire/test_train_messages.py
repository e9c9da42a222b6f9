"""Round trips of messages and payloads, and rejection of invalid ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsvd.errors import PayloadError
from fedsvd.lora.adapter import Adapter
from fedsvd.wire import payload, train_messages

CPU = torch.device("cpu")


def make_adapter() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    return Adapter(
        A={"x": torch.randn(2, 5, generator=generator), "y": torch.randn(2, 3, generator=generator)},
        B={"x": torch.randn(4, 2, generator=generator), "y": torch.randn(7, 2, generator=generator)},
        head={"weight": torch.randn(3, 3, generator=generator)},
        scale={"x": 1.0, "y": 1.0},
    )


def test_pack_and_unpack_preserve_tensors_in_one_array_per_part() -> None:
    adapter = make_adapter()

    record = payload.pack(adapter, ["B", "head"])
    parts = payload.unpack(record, ["B", "head"], adapter, CPU)

    assert set(record) == {"B", "head"}
    assert payload.payload_bytes(record) >= 4 * (4 * 2 + 7 * 2 + 9)
    assert all(torch.equal(parts["B"][name], adapter.B[name]) for name in adapter.B)
    assert torch.equal(parts["head"]["weight"], adapter.head["weight"])


def flat(*values: float, size: int = 22, dtype: type = np.float32) -> Array:
    array = np.zeros(size, dtype=dtype)
    array[: len(values)] = values
    return Array(array)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "exactly"),
        ({"B": flat(), "A": flat()}, "exactly"),
        ({"B": flat(size=21)}, "shape"),
        ({"B": flat(dtype=np.float64)}, "float64"),
        ({"B": flat(float("nan"))}, "1 non-finite values"),
        ({"B": flat(float("inf"), float("-inf"))}, "2 non-finite values"),
        ({"B": Array("float32", (22,), "numpy.ndarray", b"truncated")}, "decoded"),
        ({"B": Array("float32", (22,), "numpy.ndarray", flat(size=3).data)}, r"shape \(3,\), followed by"),
    ],
)
def test_invalid_payloads_are_rejected(arrays: dict[str, Array], message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        payload.unpack(ArrayRecord(arrays), ["B"], make_adapter(), CPU)


def test_train_request_round_trip() -> None:
    task = train_messages.TrainTask(3, frozenset({"A", "B"}), frozenset({"B"}))

    decoded, factors = train_messages.read_train_request(
        train_messages.train_request(task, payload.pack(make_adapter(), ["B"]))
    )

    assert decoded == task
    assert set(factors) == {"B"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"server-round": 0}, "round >= 1"),
        ({"uplink": ["A"]}, "non-empty subset"),
        ({"uplink": []}, "non-empty subset"),
        ({"trains": ["C"]}, "parts = "),
        ({"trains": "B"}, "parts = "),
        ({"trains": None}, "KeyError.*trains"),
        ({"versions": [0, 0]}, "ValueError"),
    ],
)
def test_invalid_requests_are_rejected(changed: dict[str, object], message: str) -> None:
    task = train_messages.TrainTask(1, frozenset({"B"}), frozenset({"B"}))
    content = train_messages.train_request(task, ArrayRecord())
    values = {**content.config_records[train_messages.TASK], **changed}
    content[train_messages.TASK] = ConfigRecord({key: value for key, value in values.items() if value is not None})
    with pytest.raises(PayloadError, match=message):
        train_messages.read_train_request(content)


def test_train_reply_round_trip() -> None:
    report = train_messages.ClientReport(2, 100, 1.5, epsilon=3.0, noise_multiplier=0.9, sample_rate=0.1, steps=4)
    report = replace(report, loss=0.5, metrics={"spearman": -0.25, "rmse": 3.5})

    decoded, _ = train_messages.read_train_reply(train_messages.train_reply(report, ArrayRecord()))

    assert decoded == report


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num-examples": 0}, r"num_examples = 0 is invalid: expected an integer from 1 to 2\^40"),
        ({"num-examples": -5}, "num_examples = -5 is invalid: expected a number >= 0"),
        ({"num-examples": 2**50}, r"num_examples = \d+ is invalid: expected an integer from 1 to 2\^40"),
        ({"num-examples": 1.5}, "num_examples = 1.5 is invalid: expected an integer"),
        ({"num-examples": [3]}, "num_examples is list: expected a finite number"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": -1.0}, "seconds = -1.0 is invalid: expected a number >= 0"),
        ({"sample-rate": 1.5}, "sample_rate = 1.5 is invalid: expected a number from 0 to 1"),
        ({"unknown": 1}, "train reply is invalid .*unknown"),
        ({"metric.epsilon": 1.0}, "metric 'epsilon' is unknown"),
        ({"metric.accuracy": 1.5}, "metric accuracy = 1.5 is invalid: expected a number from 0 to 1"),
        ({"metric.spearman": float("nan")}, "metric spearman is nan"),
        ({"metric.rmse": float("inf")}, "metric rmse is inf"),
        ({"metric.rmse": [1.0]}, "metric rmse is list"),
    ],
)
def test_invalid_replies_are_rejected(changed: dict[str, object], message: str) -> None:
    content = train_messages.train_reply(train_messages.ClientReport(0, 3, 1.0), ArrayRecord())
    content[train_messages.METRICS] = MetricRecord({**content.metric_records[train_messages.METRICS], **changed})
    with pytest.raises(PayloadError, match=message):
        train_messages.read_train_reply(content)


def test_declined_reply() -> None:
    assert train_messages.declined_reason(train_messages.declined_reply("budget")) == "budget"
    assert train_messages.declined_reason(RecordDict()) is None

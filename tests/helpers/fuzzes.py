"""Invalid replies, none of which an honest client sends, by kind. Each is made from a valid reply."""

import random
import struct
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsvd.wire import train_messages

ROWS, RANK, CLIENTS, ROUNDS = 6, 2, 12, 100
SIZE = ROWS * RANK
# Unpickling this ends the process.
PICKLE = b"cos\n_exit\n(I9\ntR."
Fuzz = Callable[[random.Random, RecordDict], RecordDict]


def with_factor(content: RecordDict, array: Array | None, name: str = "B") -> RecordDict:
    content[train_messages.FACTORS] = ArrayRecord({} if array is None else {name: array})
    return content


def with_metric(content: RecordDict, key: str, value: object) -> RecordDict:
    numbers = dict(content.metric_records[train_messages.METRICS])
    numbers.pop(key, None)
    content[train_messages.METRICS] = MetricRecord(numbers if value is None else numbers | {key: value})
    return content


def raw_array(
    data: bytes, dtype: str = "float32", shape: tuple[int, ...] = (SIZE,), stype: str = "numpy.ndarray"
) -> Array:
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def valid_bytes() -> bytes:
    return Array(np.full(SIZE, 0.01, dtype=np.float32)).data


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1")


def with_one_value(rng: random.Random, value: float) -> Array:
    values = np.full(SIZE, 0.01, dtype=np.float32)
    values[rng.randrange(SIZE)] = value
    return Array(values)


def flip_header_bits(rng: random.Random) -> Array:
    """Return a valid array with some bits of its header flipped."""
    data = bytearray(valid_bytes())
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data) - 4 * SIZE)] ^= 1 << rng.randrange(8)
    if data == valid_bytes():
        data[0] ^= 1
    return raw_array(bytes(data))


def unexpected_records(rng: random.Random, content: RecordDict) -> RecordDict:
    records = [
        ConfigRecord({"reason": [1, 2]}), ConfigRecord({}), MetricRecord({"x": 1}), ArrayRecord({}),
        MetricRecord({"partition-id": [0.5] * 9}), ConfigRecord({"lost": b"\0" * 99}),
    ]  # fmt: skip
    names = [
        train_messages.FACTORS,
        train_messages.METRICS,
        train_messages.DECLINED,
        train_messages.TASK,
        "\n\x1b[31m",
        "",
    ]
    return RecordDict({rng.choice(names): rng.choice(records) for _ in range(rng.randrange(4))})


HUGE_SHAPE = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**15},)}}\n"
FUZZES: dict[str, Fuzz] = {
    "a part is missing": lambda rng, content: with_factor(content, None),
    "no factors at all": lambda rng, content: RecordDict({train_messages.METRICS: content[train_messages.METRICS]}),
    "no metrics": lambda rng, content: RecordDict({train_messages.FACTORS: content[train_messages.FACTORS]}),
    "nothing": lambda rng, content: RecordDict(),
    "records of other kinds": unexpected_records,
    "another part": lambda rng, content: with_factor(
        content, raw_array(valid_bytes()), rng.choice(["A", "head", "core", "b", "B.rotation", "base_left"])
    ),
    "an extra part": lambda rng, content: _with_extra_part(content, "A"),
    "another dtype": lambda rng, content: with_factor(
        content, Array(np.zeros(SIZE, dtype=rng.choice([np.float64, np.float16, np.int32, np.int64, np.bool_])))
    ),
    "another shape": lambda rng, content: with_factor(
        content, Array(np.zeros(rng.choice([SIZE - 1, SIZE + 1, 0, (SIZE, 1), (ROWS, RANK), ()]), np.float32))
    ),
    "not a number": lambda rng, content: with_factor(content, with_one_value(rng, float("nan"))),
    "infinite": lambda rng, content: with_factor(content, with_one_value(rng, rng.choice([1, -1]) * float("inf"))),
    "huge": lambda rng, content: with_factor(content, with_one_value(rng, rng.choice([1e5, -1e12, 3e38]))),
    "truncated": lambda rng, content: with_factor(
        content, raw_array(valid_bytes()[: rng.randrange(len(valid_bytes()))])
    ),
    "too long": lambda rng, content: with_factor(content, raw_array(valid_bytes() + b"\0" * rng.randrange(1, 99))),
    "a damaged header": lambda rng, content: with_factor(content, flip_header_bits(rng)),
    "random bytes": lambda rng, content: with_factor(content, raw_array(rng.randbytes(rng.randrange(300)))),
    "a header that claims petabytes": lambda rng, content: with_factor(
        content, raw_array(npy_header(HUGE_SHAPE), shape=rng.choice([(SIZE,), (10**15,)]))
    ),
    "a deeply nested header": lambda rng, content: with_factor(content, raw_array(npy_header("(" * 9000))),
    "a pickle": lambda rng, content: with_factor(
        content, raw_array(npy_header(f"{{'descr': '|O', 'fortran_order': False, 'shape': ({SIZE},)}}\n") + PICKLE)
    ),
    "another serialization": lambda rng, content: with_factor(content, raw_array(valid_bytes(), stype="pickle")),
    "a wrong dtype or shape": lambda rng, content: with_factor(
        content, rng.choice([raw_array(valid_bytes(), dtype="float64"), raw_array(Array(np.zeros(SIZE)).data)])
    ),
    "impossible numbers of examples": lambda rng, content: with_metric(
        content, "num-examples", rng.choice([None, 0, -1, 2**62, 10**8, 1.5, float("nan"), [3], 11 + CLIENTS])
    ),
    "another client's number": lambda rng, content: with_metric(
        content, "partition-id", rng.choice([None, -1, CLIENTS, 10**12, 0.5, CLIENTS - 1, [0]])
    ),
    "another round": lambda rng, content: with_metric(
        content, "server-round", rng.choice([None, 0, -3, ROUNDS + 2, 2**40, 1.5])
    ),
    "impossible numbers": lambda rng, content: with_metric(
        content,
        rng.choice(["seconds", "epsilon", "noise-multiplier", "sample-rate", "steps", "clipped-share"]),
        rng.choice([-1, float("nan"), float("inf"), [1.0, 2.0], -1e300]),
    ),
    "unknown numbers": lambda rng, content: with_metric(content, rng.choice(["unknown", "A", "__class__"]), 1),
    "a refusal without a reason": lambda rng, content: RecordDict({train_messages.DECLINED: ConfigRecord({})}),
    "a very long refusal": lambda rng, content: train_messages.declined_reply("\n\x1b[2J\0no" * 10**5),
    "a resend request": lambda rng, content: train_messages.resend_reply(),
}  # fmt: skip


def _with_extra_part(content: RecordDict, name: str) -> RecordDict:
    content.array_records[train_messages.FACTORS][name] = raw_array(valid_bytes())
    return content

"""What no honest client sends in the place of a good reply."""

import random
import struct
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsvd.wire import train_messages

ROWS, RANK, CLIENTS, ROUNDS = 6, 2, 12, 100
SIZE = ROWS * RANK
# What unpickling it would do: end the process.
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


def raw(data: bytes, dtype: str = "float32", shape: tuple[int, ...] = (SIZE,), stype: str = "numpy.ndarray") -> Array:
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def good_bytes() -> bytes:
    return Array(np.full(SIZE, 0.01, dtype=np.float32)).data


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1")


def poisoned(chance: random.Random, value: float) -> Array:
    values = np.full(SIZE, 0.01, dtype=np.float32)
    values[chance.randrange(SIZE)] = value
    return Array(values)


def flipped(chance: random.Random) -> Array:
    """The bytes of a good array with some in its header changed."""
    data = bytearray(good_bytes())
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(len(data) - 4 * SIZE)] ^= 1 << chance.randrange(8)
    if data == good_bytes():
        data[0] ^= 1
    return raw(bytes(data))


def garbage(chance: random.Random, content: RecordDict) -> RecordDict:
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
    return RecordDict({chance.choice(names): chance.choice(records) for _ in range(chance.randrange(4))})


HUGE_SHAPE = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**15},)}}\n"
FUZZES: dict[str, Fuzz] = {
    "a part is missing": lambda chance, content: with_factor(content, None),
    "no factors at all": lambda chance, content: RecordDict({train_messages.METRICS: content[train_messages.METRICS]}),
    "no metrics": lambda chance, content: RecordDict({train_messages.FACTORS: content[train_messages.FACTORS]}),
    "nothing": lambda chance, content: RecordDict(),
    "records of other kinds": garbage,
    "another part": lambda chance, content: with_factor(
        content, raw(good_bytes()), chance.choice(["A", "head", "core", "b", "B.rotation", "base_left"])
    ),
    "an extra part": lambda chance, content: _also(content, "A"),
    "another dtype": lambda chance, content: with_factor(
        content, Array(np.zeros(SIZE, dtype=chance.choice([np.float64, np.float16, np.int32, np.int64, np.bool_])))
    ),
    "another shape": lambda chance, content: with_factor(
        content, Array(np.zeros(chance.choice([SIZE - 1, SIZE + 1, 0, (SIZE, 1), (ROWS, RANK), ()]), np.float32))
    ),
    "not a number": lambda chance, content: with_factor(content, poisoned(chance, float("nan"))),
    "infinite": lambda chance, content: with_factor(content, poisoned(chance, chance.choice([1, -1]) * float("inf"))),
    "huge": lambda chance, content: with_factor(content, poisoned(chance, chance.choice([1e5, -1e12, 3e38]))),
    "truncated": lambda chance, content: with_factor(content, raw(good_bytes()[: chance.randrange(len(good_bytes()))])),
    "too long": lambda chance, content: with_factor(content, raw(good_bytes() + b"\0" * chance.randrange(1, 99))),
    "a damaged header": lambda chance, content: with_factor(content, flipped(chance)),
    "random bytes": lambda chance, content: with_factor(content, raw(chance.randbytes(chance.randrange(300)))),
    "a header that promises petabytes": lambda chance, content: with_factor(
        content, raw(header(HUGE_SHAPE), shape=chance.choice([(SIZE,), (10**15,)]))
    ),
    "a header that nests deep": lambda chance, content: with_factor(content, raw(header("(" * 9000))),
    "a pickle": lambda chance, content: with_factor(
        content, raw(header(f"{{'descr': '|O', 'fortran_order': False, 'shape': ({SIZE},)}}\n") + PICKLE)
    ),
    "another serialization": lambda chance, content: with_factor(content, raw(good_bytes(), stype="pickle")),
    "a lie about dtype or shape": lambda chance, content: with_factor(
        content, chance.choice([raw(good_bytes(), dtype="float64"), raw(Array(np.zeros(SIZE)).data)])
    ),
    "sizes that cannot be": lambda chance, content: with_metric(
        content, "num-examples", chance.choice([None, 0, -1, 2**62, 10**8, 1.5, float("nan"), [3], 11 + CLIENTS])
    ),
    "another client's number": lambda chance, content: with_metric(
        content, "partition-id", chance.choice([None, -1, CLIENTS, 10**12, 0.5, CLIENTS - 1, [0]])
    ),
    "another round": lambda chance, content: with_metric(
        content, "server-round", chance.choice([None, 0, -3, ROUNDS + 2, 2**40, 1.5])
    ),
    "numbers that cannot be": lambda chance, content: with_metric(
        content,
        chance.choice(["seconds", "epsilon", "noise-multiplier", "sample-rate", "steps", "clipped-share"]),
        chance.choice([-1, float("nan"), float("inf"), [1.0, 2.0], -1e300]),
    ),
    "unknown numbers": lambda chance, content: with_metric(content, chance.choice(["surprise", "A", "__class__"]), 1),
    "a refusal without a reason": lambda chance, content: RecordDict({train_messages.DECLINED: ConfigRecord({})}),
    "a refusal that floods the log": lambda chance, content: train_messages.declined_reply("\n\x1b[2J\0no" * 10**5),
    "lost, for ever": lambda chance, content: train_messages.resend_reply(),
}  # fmt: skip


def _also(content: RecordDict, name: str) -> RecordDict:
    content.array_records[train_messages.FACTORS][name] = raw(good_bytes())
    return content

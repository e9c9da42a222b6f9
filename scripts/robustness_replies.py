"""Replies that a malicious client could send: each is used or dropped with a reason, and nothing else happens.

A valid reply is changed in up to four places: numbers, arrays, records, texts; or the bytes that Flower would make of
it are. The honest client's reply, which arrives after it, is always used.
"""

import json
import math
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from robustness_fuzz import Check, Source

from fedsvd.compat import flower
from fedsvd.config import Config
from fedsvd.config.compose import compose
from fedsvd.errors import PayloadError
from fedsvd.lora.adapter import Adapter
from fedsvd.methods.aggregate import Reply
from fedsvd.privacy.plan import example_sample_rate
from fedsvd.secagg import messages
from fedsvd.wire import train_messages
from fedsvd.wire.train_messages import ClientReport
from server import replies
from server.clients import Clients

ROWS, RANK, ROUND = 6, 2, 3
SIZE = ROWS * RANK
B = frozenset({"B"})
PARTITIONS = {2: 0, 3: 1}
ADAPTER = Adapter(A={"s": torch.eye(RANK, 3)}, B={"s": torch.zeros(ROWS, RANK)}, head={}, scale={"s": 1.0})
NUMBERS = [name.replace("_", "-") for name in ClientReport.__dataclass_fields__] + ["unknown", "__class__"]
DTYPES = ["float32", "float64", "float16", "int32", "uint64", "bool", "object", ""]
RECORDS = [train_messages.FACTORS, train_messages.METRICS, train_messages.DECLINED, train_messages.RESEND,
           messages.RECORD, messages.MASKED]  # fmt: skip
Read = Callable[[Message, int], tuple[Reply, ClientReport, int]]


def valid_content(partition_id: int, config: Config, *, masked: bool) -> RecordDict:
    rate = example_sample_rate(config.train, 160)
    report = ClientReport(partition_id, 160, 0.1, 1.0, 1.0, rate, 2, server_round=ROUND)
    factors = ArrayRecord({"B": Array(np.full(SIZE, 0.01, dtype=np.float32))})
    content = train_messages.train_reply(report, factors)
    return messages.masked_reply(np.arange(SIZE + 1, dtype=np.uint64), content) if masked else content


def change_number(source: Source, content: RecordDict) -> None:
    numbers = dict(content.metric_records.get(train_messages.METRICS, MetricRecord()))
    key = source.choice(NUMBERS)
    kind = source.integer(0, 4)
    values = [None, source.integer(-(2**63), 2**63 - 1), source.number(), source.integer(0, 400), [source.number()]]
    numbers.pop(key, None)
    content[train_messages.METRICS] = MetricRecord(numbers if kind == 0 else numbers | {key: values[kind]})


def change_array(source: Source, content: RecordDict) -> None:
    name = source.choice([train_messages.FACTORS, messages.MASKED])
    arrays = dict(content.array_records.get(name, ArrayRecord()))
    key = source.choice(["B", "vector", "A", "head", "core", "base_left", source.text(8)])
    old = arrays.get(key) or Array(np.full(SIZE, 0.01, dtype=np.float32))
    data, dtype, shape, stype = bytearray(old.data), old.dtype, old.shape, old.stype
    kind = source.integer(0, 7)
    if kind == 0:
        arrays.pop(key, None)
    elif kind == 1:
        dtype = source.choice(DTYPES)
    elif kind == 2:
        shape = tuple(source.integer(0, 2**40) for _ in range(source.integer(0, 3)))
    elif kind == 3:
        stype = source.choice(["numpy.ndarray", "pickle", "", source.text(9)])
    elif kind == 4:
        data[(start := source.integer(0, 200)) : start + source.integer(0, 4)] = source.blob(6)
    elif kind == 5:
        data = data[: source.integer(0, 200)]
    else:
        values = np.frombuffer(bytes(data[-4 * SIZE :]).ljust(4 * SIZE), dtype=np.float32).copy()
        values[source.integer(0, SIZE - 1)] = np.clip(source.number(), -3.4e38, 3.4e38) if kind == 6 else np.nan
        data[-4 * SIZE :] = values.tobytes()
    if kind:
        arrays[key] = Array(dtype=dtype, shape=shape, stype=stype, data=bytes(data))
    content[name] = ArrayRecord(arrays)


def change_record(source: Source, content: RecordDict) -> None:
    name = source.choice([*RECORDS, source.text(8)])
    kind = source.integer(0, 5)
    if kind == 0:
        content.pop(name, None)
        return
    config = ConfigRecord(
        {source.choice(["reason", "stage", source.text(5)]): source.choice([source.text(60), 1, [2]])}
    )
    content[name] = [config, config, ArrayRecord(), MetricRecord({"x": 1}), ConfigRecord()][kind - 1]


def changed_reply(source: Source, request: Message, content: RecordDict) -> Message:
    for _ in range(source.integer(1, 4)):
        source.choice([change_number, change_array, change_array, change_record])(source, content)
    if source.integer(0, 31) == 0:
        return Message(Error(source.integer(0, 99), source.text(30)), reply_to=request)
    return Message(content, reply_to=request)


def checked_settings(name: str) -> tuple[Config, Read, bool]:
    """Return configuration, reader and whether vectors are masked, as the server's strategy has them."""
    overrides = ["experiment=smoke", "method=ffa_lora", "train.head=frozen", "privacy.accountant=rdp"]
    config = compose([*overrides, "privacy=none" if name == "none" else "privacy.noise_multiplier=1"])

    def read_plain(message: Message, partition_id: int) -> tuple[Reply, ClientReport, int]:
        return replies.read_plain_reply(message, partition_id, B, ADAPTER, config, ROUND, 160 if partition_id else None)

    def read_masked(message: Message, partition_id: int) -> tuple[Reply, ClientReport, int]:
        messages.masked_vector(message.content, SIZE + 1)
        return replies.read_masked_reply(message, partition_id)

    return config, read_masked if name == "masked" else read_plain, name == "masked"


def connected_clients(config: Config) -> Clients:
    clients = Clients(config.federation)
    clients.partitions = dict(PARTITIONS)
    return clients


def assert_consistent(record: replies.RoundRecord, used: list[Reply], config: Config) -> None:
    """Assert what holds after every round, whatever a client has sent."""
    assert used[-1].partition_id == 1, "the honest reply was not used"
    assert len(used) == len(record.reports) == 2 - record.dropped
    assert all(reason.isprintable() and len(reason) < 600 for reason in record.refused.values()), record.refused
    json.dumps([vars(report) for report in record.reports], allow_nan=False)
    for reply, report in zip(used, record.reports, strict=True):
        assert (report.partition_id, report.server_round) == (reply.partition_id, ROUND)
        assert report.num_examples is None or 1 <= report.num_examples <= config.federation.max_num_examples
        assert reply.num_examples >= 1
        assert 0 <= reply.noise_std < math.inf
        for tensor in (tensor for tensors in reply.parts.values() for tensor in tensors.values()):
            assert tensor.shape == (ROWS, RANK)
            assert tensor.isfinite().all()
            assert tensor.double().norm() <= config.federation.max_reply_norm


def changed_contents() -> Check:
    """Changed replies, after Flower has read them."""
    flower.set_task_identity(1, 7, flower.SUPERLINK_NODE_ID)
    settings = [checked_settings(name) for name in ("none", "dp_sgd", "masked")]
    requests = [Message(RecordDict(), node, "train", group_id=str(ROUND)) for node in PARTITIONS]

    def check(source: Source) -> str:
        config, read, masked = source.choice(settings)
        try:
            content = valid_content(0, config, masked=masked)
            reply = changed_reply(source, requests[0], content)
        except (TypeError, ValueError, KeyError):
            return "not a message of Flower"
        train_messages.asks_resend(content)
        record = replies.RoundRecord(ROUND, 2)
        honest = Message(valid_content(1, config, masked=masked), reply_to=requests[1])
        used = list(replies.valid_replies([reply, honest], record, connected_clients(config), read))
        assert_consistent(record, used, config)
        replies.check_divergence(record, config)
        return "dropped" if record.dropped else "used"

    return check


def changed_bytes() -> Check:
    """Replies whose serialized records are changed, before Flower reads them."""
    flower.set_task_identity(1, 7, flower.SUPERLINK_NODE_ID)
    config, read, _ = checked_settings("none")
    request = Message(RecordDict(), 2, "train", group_id=str(ROUND))
    valid = flower.to_objects(Message(valid_content(0, config, masked=False), reply_to=request))
    names = sorted(valid[1])

    def check(source: Source) -> str:
        contents = dict(valid[1])
        name = source.choice(names)
        data = bytearray(contents[name])
        for _ in range(source.integer(1, 3)):
            data[(start := source.integer(0, len(data))) : start + source.integer(0, 8)] = source.blob(8)
        contents[name] = bytes(data)
        message = flower.inflate_or_error(valid[0], contents)
        record = replies.RoundRecord(ROUND, 1)
        try:
            used = list(replies.valid_replies([message], record, connected_clients(config), read))
        except PayloadError as error:
            raise AssertionError("an invalid reply is an error") from error
        assert len(used) == 1 - record.dropped
        return "unreadable" if message.has_error() else "used" if used else "dropped"

    return check

"""Inputs of users and nodes' owners: each is understood or refused with one of fedsvd's own errors, and none else.

Own-data files, overrides of the command line, node configurations, and ledgers with damaged bytes. A damaged ledger is
refused, or reads as what was charged.
"""

import csv
import io
import json
import tempfile
from pathlib import Path

import pyarrow
from flwr.app import Context, RecordDict
from pyarrow import parquet
from robustness_fuzz import Check, Source

from client.identity import client_identity
from client.node_data import NODE_DATA_KEYS, with_node_data
from client.node_limits import NodeLimits, read_limits
from fedsvd.compat.flower import parse_node_config
from fedsvd.config.compose import as_dict, compose
from fedsvd.data.node_data import load_node_file
from fedsvd.data.rows import Columns
from fedsvd.errors import FedSVDError, LedgerError
from fedsvd.privacy.accounting import Spend
from fedsvd.privacy.ledger import Budget, Ledger
from fedsvd.trainer.settings import TRAINER_KEYS, read_settings

ROWS = [("text", "label"), ("a fine film", "good"), ('a long, "dull" film\n', "bad"), ("Übermut – 100 %", "good")]
LABELS = ("good", "bad")
# Bytes with a meaning in one of the formats.
PIECES = [bytes([one]) for one in b'\n",\0{}\r']
PIECES += [b"", b"\xff\xfe", b"\xef\xbb\xbf", b"[]", b"null", rb"\ud800", b"NaN"]
NODE_KEYS = ["partition-id", "num-partitions", "ledger", "ledger-policy", "max_epsilon", *NODE_DATA_KEYS, *TRAINER_KEYS]
NODE_KEYS += [name.replace("_", "-") for name in NodeLimits.__dataclass_fields__]


def valid_files() -> dict[str, bytes]:
    """Return a small valid file in each format."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(ROWS)
    objects = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(objects), sink)
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in objects)
    return {"csv": text.getvalue().encode(), "jsonl": lines.encode(), "parquet": sink.getvalue()}


def damage(source: Source, content: bytes, changes: int) -> bytes:
    """Return bytes in which some places are replaced, removed, repeated or cut off."""
    data = bytearray(content)
    for _ in range(source.integer(1, changes)):
        start, length = source.integer(0, len(data)), source.integer(0, 12)
        kind = source.integer(0, 5)
        if kind == 0:
            data[start : start + length] = source.blob(12)
        elif kind == 1:
            data[start:start] = source.choice(PIECES)
        elif kind == 2:
            del data[start : start + length]
        elif kind == 3:
            data[start:start] = data[start : start + 40 * length]
        elif kind == 4:
            del data[start:]
        elif start < len(data):
            data[start] ^= 1 << source.integer(0, 7)
    return bytes(data)


def refusal(error: FedSVDError) -> str:
    assert str(error).strip(), "an error without a message"
    return "refused"


def own_data_files() -> Check:
    files, folder = valid_files(), Path(tempfile.mkdtemp())

    def check(source: Source) -> str:
        name = source.choice(sorted(files))
        path = folder / f"own.{name}"
        path.write_bytes(damage(source, files[name], 3))
        columns = Columns("text", source.choice([None, None, "other"]), "label", None)
        try:
            dataset = load_node_file(str(path), columns, LABELS, separator=source.choice([",", ",", "tab", ";"]))
        except FedSVDError as error:
            return refusal(error)
        assert len(dataset) > 0
        assert all(isinstance(text, str) and text.strip() for text in dataset["text"])
        assert set(dataset["label"]) <= {0, 1}
        return "read"

    return check


def leaves(values: object, prefix: str = "") -> list[str]:
    if not isinstance(values, dict):
        return [prefix]
    return [leaf for key, value in values.items() for leaf in leaves(value, f"{prefix}.{key}" if prefix else key)]


def overrides() -> Check:
    keys = [*leaves(as_dict(compose(["experiment=smoke"]))), "model", "data", "privacy", "train", "method", "unknown"]
    # Half of the values are plausible, so that many configurations get as far as the constraints between keys.
    plausible = ["1", "2", "0.5", "3.0", "true", "false", "null", "none", "auto", "sgd", "first", "mean", "100", "all"]
    words = ["", "null", "0", "-1", "1e400", "nan", "inf", "true", "none", "[1,2]", "{a: 1}", "${seed}", "${oc.env:X}"]
    words += ["'", '"', "a b", "\\", "1e-9", "99999999999999999999", "auto", "\u2028", "[", "9:9", "!!python/name:os"]

    def check(source: Source) -> str:
        items = []
        for _ in range(source.integer(1, 3)):
            key = source.choice(keys) if source.integer(0, 9) else source.text(6)
            if source.integer(0, 1):
                items.append(f"{key}={source.choice(plausible)}")
                continue
            value = source.choice(words) if source.integer(0, 3) else source.text(10)
            prefix, sign = source.choice(["", "", "", "+", "++", "~"]), source.choice(["=", "=", "=", ""])
            items.append(f"{prefix}{key}{sign}{value}")
        try:
            compose(["experiment=smoke", *items])
        except FedSVDError as error:
            return refusal(error)
        return "accepted"

    return check


def node_configurations() -> Check:
    runs = [compose(["experiment=smoke"]), compose(["experiment=smoke", "data=node", "data.labels=[a,b]"])]
    words = ["", "none", "strict", "/a", "tab", "x"]

    def check(source: Source) -> str:
        values: dict[str, object] = {"partition-id": 0}
        for _ in range(source.integer(0, 6)):
            key = source.choice(NODE_KEYS) if source.integer(0, 9) else source.text(8)
            kinds = [source.choice(words), source.text(6), source.number(), source.integer(-2, 2**70), True, False]
            values[key] = kinds[source.integer(0, 5)]
        try:
            read_settings(values)
            config = with_node_data(source.choice(runs), values)
            limits = client_identity(Context(7, 2, values, RecordDict(), {}), config).limits
            limits.check(config)
            limits.budget(config.privacy)
        except FedSVDError as error:
            return refusal(error)
        return "accepted"

    return check


def node_configuration_texts() -> Check:
    valid = b"partition-id=0 num-partitions=2 ledger=\"/a b\" max-epsilon=3.0 share-counts=false data-path='x.csv'"

    def check(source: Source) -> str:
        text = damage(source, valid, 3).decode("utf-8", errors="replace")
        try:
            read_limits(parse_node_config(text))
        except (ValueError, FedSVDError):
            return "refused"
        return "accepted"

    return check


def damaged_ledgers() -> Check:
    path = Path(tempfile.mkdtemp()) / "ledger"
    budget = Budget(100.0, 1e-5, 100.0, 1e-5, "rdp")
    charged = [Spend(1.0 + number / 7, 0.05, 5 + number) for number in range(6)]
    with Ledger.open(path, "data") as ledger:
        for number, spend in enumerate(charged):
            ledger.reserve("run", number, f"message {number}", spend, budget)
            ledger.mark_released(f"message {number}")
    valid = path.read_bytes()

    def check(source: Source) -> str:
        path.write_bytes(damage(source, valid, 2))
        try:
            with Ledger.open(path, "data") as ledger:
                history = ledger.history()
        except LedgerError:
            return "refused"
        assert history == charged, "a damaged ledger counts something else"
        return "read as charged"

    return check

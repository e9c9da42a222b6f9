"""What travels in the four stages of a secure round."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedsvd.errors import PayloadError
from fedsvd.wire import payload

RECORD = "secure"
MASKED = "masked"
Stage = Literal["setup", "share", "collect", "unmask"]
_OPEN = "factors"


def request(stage: Stage, session: str, content: RecordDict | None = None, **fields: object) -> RecordDict:
    """Build the server's message of one stage; ``content`` travels along."""
    records = RecordDict(dict(content.items()) if content else {})
    values = {key.replace("_", "-"): value for key, value in fields.items()}
    records[RECORD] = ConfigRecord({"stage": stage, "session": session, **values})  # type: ignore[dict-item]
    return records


def answer(**fields: object) -> RecordDict:
    """Build a client's answer of one stage."""
    values = {key.replace("_", "-"): value for key, value in fields.items()}
    return RecordDict({RECORD: ConfigRecord(values)})  # type: ignore[arg-type]


def is_request(content: RecordDict) -> bool:
    """Say whether a message belongs to a secure round."""
    return RECORD in content.config_records


def read_field(content: RecordDict, name: str, kind: type) -> object:
    """Read one field.

    Raises:
        PayloadError: It is missing, or not of this type.
    """
    record = content.config_records.get(RECORD)
    value = None if record is None else record.get(name)
    if type(value) is not kind:
        raise PayloadError(f"a message of the secure round has no {name}. Do both ends run one version?")
    return value


def read_key(content: RecordDict, name: str) -> bytes:
    """Read one key; raises `PayloadError` as `read_field` does."""
    value = read_field(content, name, bytes)
    assert isinstance(value, bytes)  # noqa: S101 - what `read_field` has just checked
    return value


def read_node_map(content: RecordDict, nodes: str, values: str) -> dict[int, bytes]:
    """Read two lists of one length as a mapping.

    Raises:
        PayloadError: They are missing, of different lengths, or name a node twice.
    """
    keys, found = read_field(content, nodes, list), read_field(content, values, list)
    mapping = dict(zip(keys, found, strict=False))  # type: ignore[call-overload]
    if not len(mapping) == len(keys) == len(found):  # type: ignore[arg-type]
        raise PayloadError(f"{nodes} and {values} of the secure round do not fit each other.")
    return mapping


def read_node_set(content: RecordDict, name: str) -> set[int]:
    """Read a list of nodes, none twice.

    Raises:
        PayloadError: It is missing, or names a node twice.
    """
    nodes: list[int] = list(read_field(content, name, list))  # type: ignore[call-overload]
    if len(set(nodes)) != len(nodes):
        raise PayloadError(f"{name} of the secure round names a node twice.")
    return set(nodes)


def masked_reply(vector: np.ndarray, report: RecordDict) -> RecordDict:
    """Put a masked vector in the place of the factors."""
    records = RecordDict({key: value for key, value in report.items() if key != _OPEN})
    records[MASKED] = ArrayRecord({"vector": Array(vector)})
    return records


def masked_vector(content: RecordDict, size: int) -> np.ndarray:
    """Read a masked vector of a known size.

    Raises:
        PayloadError: It is missing, or of another type or size.
    """
    record = content.array_records.get(MASKED)
    array = None if record is None else record.get("vector")
    if array is None or array.dtype != "uint64" or list(array.shape) != [size]:
        raise PayloadError(f"the reply holds no masked vector of {size} numbers.")
    return payload.decode(array, "vector", "uint64", size)


def masked_bytes(content: RecordDict) -> int:
    """Return the number of bytes of a reply's masked vector."""
    return sum(len(array.data) for array in content.array_records.get(MASKED, ArrayRecord()).values())


def split_node_map(nodes: Mapping[int, bytes], chosen: Collection[int]) -> tuple[list[int], list[bytes]]:
    """Return a mapping's entries for some nodes as the two lists that travel."""
    kept = [node for node in sorted(nodes) if node in chosen]
    return kept, [nodes[node] for node in kept]

"""Message contents of the four stages of a secure round."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedsvd.errors import PayloadError

RECORD = "secure"
MASKED = "masked"
Stage = Literal["setup", "share", "collect", "unmask"]
# The record with the unmasked factors, which a masked reply must not contain.
_UNMASKED = "factors"


def request(stage: Stage, session: str, content: RecordDict | None = None, **fields: object) -> RecordDict:
    """Build the server's message for one stage.

    Args:
        stage: The stage.
        session: Identifier of the secure round.
        content: Records to include.
        fields: Fields of the stage; underscores in their names are replaced by dashes.
    """
    records = RecordDict(dict(content.items()) if content else {})
    values = {key.replace("_", "-"): value for key, value in fields.items()}
    records[RECORD] = ConfigRecord({"stage": stage, "session": session, **values})  # type: ignore[dict-item]
    return records


def answer(**fields: object) -> RecordDict:
    """Build a client's answer for one stage; underscores in the names of ``fields`` are replaced by dashes."""
    values = {key.replace("_", "-"): value for key, value in fields.items()}
    return RecordDict({RECORD: ConfigRecord(values)})  # type: ignore[arg-type]


def read_field(content: RecordDict, name: str, kind: type) -> object:
    """Return one field.

    Raises:
        PayloadError: The field is missing, or does not have the type ``kind``.
    """
    record = content.config_records.get(RECORD)
    value = None if record is None else record.get(name)
    if type(value) is not kind:
        raise PayloadError(
            f"a message of the secure round has no {name} of type {kind.__name__}. Check that server and clients run "
            "the same version of fedsvd."
        )
    return value


def read_key(content: RecordDict, name: str) -> bytes:
    """Return one key; raises `PayloadError` as `read_field` does."""
    value = read_field(content, name, bytes)
    assert isinstance(value, bytes)  # noqa: S101 - already checked by `read_field`
    return value


def read_node_map(content: RecordDict, nodes: str, values: str) -> dict[int, bytes]:
    """Return two lists of the same length, a list of nodes and a list of values, as a mapping.

    Raises:
        PayloadError: A list is missing, their lengths differ, or a node occurs twice.
    """
    keys, entries = read_field(content, nodes, list), read_field(content, values, list)
    mapping = dict(zip(keys, entries, strict=False))  # type: ignore[call-overload]
    if not len(mapping) == len(keys) == len(entries):  # type: ignore[arg-type]
        raise PayloadError(
            f"{nodes} and {values} of the secure round are invalid: expected lists of the same length, and no node "
            "twice."
        )
    return mapping


def read_node_set(content: RecordDict, name: str) -> set[int]:
    """Return a list of distinct nodes as a set.

    Raises:
        PayloadError: The list is missing, or a node occurs twice.
    """
    nodes: list[int] = list(read_field(content, name, list))  # type: ignore[call-overload]
    if len(set(nodes)) != len(nodes):
        raise PayloadError(f"{name} of the secure round is invalid: a node occurs twice.")
    return set(nodes)


def masked_reply(vector: np.ndarray, report: RecordDict) -> RecordDict:
    """Return a training reply with a masked vector instead of the factors."""
    records = RecordDict({key: value for key, value in report.items() if key != _UNMASKED})
    records[MASKED] = ArrayRecord({"vector": Array(vector)})
    return records


def masked_vector(content: RecordDict, size: int) -> np.ndarray:
    """Return the masked vector of a reply.

    Raises:
        PayloadError: The vector is missing, or has another type or size.
    """
    record = content.array_records.get(MASKED)
    array = None if record is None else record.get("vector")
    if array is None or array.dtype != "uint64" or list(array.shape) != [size]:
        raise PayloadError(f"the reply has no masked vector of {size} uint64 numbers.")
    # Loads torch, which the stages without a vector do not need.
    from fedsvd.wire import payload

    return payload.decode(array, "vector", "uint64", size)


def masked_bytes(content: RecordDict) -> int:
    """Return the size of a reply's masked vector in bytes."""
    return sum(len(array.data) for array in content.array_records.get(MASKED, ArrayRecord()).values())


def split_node_map(nodes: Mapping[int, bytes], chosen: Collection[int]) -> tuple[list[int], list[bytes]]:
    """Return a mapping's entries for the chosen nodes as two lists, in the form that `read_node_map` reads."""
    selected = [node for node in sorted(nodes) if node in chosen]
    return selected, [nodes[node] for node in selected]

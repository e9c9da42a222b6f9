"""A client's factor cache, and the assembly of an adapter from the cache and a received message.

Cached factors need not be sent again in later rounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedsvd.errors import PayloadError, StaleCacheError
from fedsvd.lora.adapter import PARTS, Adapter, Part
from fedsvd.lora.initialization import SEEDED_INITIALIZATIONS, dct_rows
from fedsvd.methods import Method
from fedsvd.wire import payload
from fedsvd.wire.factor_versions import FACTOR_PARTS, rotate_factor
from fedsvd.wire.train_messages import INDICES, ROTATION, TrainTask

# Prefix of the cache's records in Flower's state.
_CACHE = "held"
_BASE_PARTS: tuple[Part, Part] = ("base_left", "base_right")


def receive_factors(
    task: TrainTask, record: ArrayRecord, state: RecordDict, start: Adapter, method: Method, device: torch.device
) -> Adapter:
    """Assemble a round's adapter from the received arrays and the cache, and cache the parts in ``task.keep``.

    Args:
        task: The round's task.
        record: The received arrays.
        state: The state that Flower stores for this node between messages; contains the cache.
        start: The adapter that this client initialized from the seed.
        method: The run's method.
        device: Device of the result.

    Raises:
        StaleCacheError: If the cache does not contain what the server assumes.
        PayloadError: If the arrays do not fit this client's model.
    """
    derived = {f"{part}{kind}" for part in FACTOR_PARTS for kind in (ROTATION, INDICES)}
    unknown = set(record) - set(PARTS) - derived
    if unknown:
        raise PayloadError(
            f"payload contains unknown parts {sorted(unknown)}: expected some of {sorted(derived | set(PARTS))}."
        )
    sent = payload.unpack(
        ArrayRecord({key: record[key] for key in record if key in PARTS}),
        [part for part in PARTS if part in record],
        start,
        device,
    )
    parts: dict[Part, Mapping[str, Tensor]] = dict(sent)
    for part in FACTOR_PARTS:
        if part in method.traits.personal:
            parts.pop(part, None)
            continue
        origin = sent.get(part) or _origin(part, task, record, state, start, method, device)
        if part in task.keep:
            _store(state, part, task.versions[part], start.with_parts({part: origin}), (part,))
        parts[part] = rotate_factor(part, origin, _rotation(part, record, start, device))
    parts.update(_assemble_base(task, sent, state, start, device))
    return start.with_parts(parts)


def _origin(
    part: Part,
    task: TrainTask,
    record: ArrayRecord,
    state: RecordDict,
    start: Adapter,
    method: Method,
    device: torch.device,
) -> Mapping[str, Tensor]:
    factor = start.part(part)
    if f"{part}{INDICES}" in record:
        like = {name: torch.empty(len(A), dtype=torch.int32) for name, A in factor.items()}
        indices = payload.unpack_sites(record[f"{part}{INDICES}"], f"{part}{INDICES}", like, device)
        if any(bool((k < 0).any() or (k >= factor[name].shape[1]).any()) for name, k in indices.items()):
            raise PayloadError(
                f"part {part}{INDICES} has indices out of range: expected rows of the DCT of each site's size."
            )
        return {name: dct_rows(indices[name], A) for name, A in factor.items()}
    init = method.init_a if part == "A" else method.init_b
    if task.versions[part] == 0 and init in SEEDED_INITIALIZATIONS:
        return factor
    if _cached_version(state, part) != task.versions[part]:
        raise StaleCacheError(part)
    return payload.unpack(state.array_records[f"{_CACHE}.{part}"], [part], start, device)[part]


def _rotation(part: Part, record: ArrayRecord, start: Adapter, device: torch.device) -> Mapping[str, Tensor] | None:
    key = f"{part}{ROTATION}"
    if key not in record:
        return None
    rank = {name: len(A) for name, A in start.A.items()}
    like = {name: torch.empty(r, r, dtype=torch.float64) for name, r in rank.items()}
    return payload.unpack_sites(record[key], key, like, device)


def _assemble_base(
    task: TrainTask,
    sent: Mapping[Part, Mapping[str, Tensor]],
    state: RecordDict,
    start: Adapter,
    device: torch.device,
) -> dict[Part, Mapping[str, Tensor]]:
    """Return the complete base: cached columns before ``base_start``, and received columns after it."""
    if not task.versions["base"]:
        return {}
    parts: dict[Part, Mapping[str, Tensor]] = {part: sent.get(part, {}) for part in _BASE_PARTS}
    if task.base_start:
        record = state.array_records.get(f"{_CACHE}.base")
        cached = payload.unpack(record, _BASE_PARTS, start, device) if record else None
        if cached is None or next(iter(cached["base_left"].values())).shape[1] < task.base_start:
            raise StaleCacheError("base")
        left = {name: old[:, : task.base_start] for name, old in cached["base_left"].items()}
        right = {name: old[: task.base_start] for name, old in cached["base_right"].items()}
        parts = {
            "base_left": _concatenate(left, parts["base_left"], dim=1),
            "base_right": _concatenate(right, parts["base_right"], dim=0),
        }
    if "base" in task.keep:
        _store(state, "base", task.versions["base"], start.with_parts(parts), _BASE_PARTS)
    return parts


def _concatenate(cached: Mapping[str, Tensor], new: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    return {name: torch.cat([old, new[name]], dim) if new else old for name, old in cached.items()}


def _store(state: RecordDict, name: str, version: int, adapter: Adapter, parts: tuple[Part, ...]) -> None:
    if _cached_version(state, name) != version:
        state[f"{_CACHE}.{name}"] = payload.pack(adapter, parts)
        state[f"{_CACHE}.{name}.version"] = ConfigRecord({"version": version})


def _cached_version(state: RecordDict, name: str) -> int | None:
    record = state.config_records.get(f"{_CACHE}.{name}.version")
    return None if record is None else int(record["version"])  # type: ignore[arg-type]

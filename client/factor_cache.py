"""What a client holds from round to round, so that it need not be sent again, and how it reads what it is sent."""

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

_HELD = "held"
_BASE: tuple[Part, Part] = ("base_left", "base_right")


def receive_factors(
    task: TrainTask, record: ArrayRecord, state: RecordDict, start: Adapter, method: Method, device: torch.device
) -> Adapter:
    """Put a round's adapter together from what was sent and what this client holds, and hold what it is told to.

    Args:
        task: The round.
        record: What was sent.
        state: What Flower keeps for this node from message to message.
        start: The adapter that this client drew from the seed.
        method: The run's.
        device: Where to put tensors.

    Raises:
        LostStateError: The server takes this client to hold what it does not (any more).
        PayloadError: Arrays that do not fit this client's model.
    """
    extras = {f"{part}{kind}" for part in FACTOR_PARTS for kind in (ROTATION, INDICES)}
    unknown = set(record) - set(PARTS) - extras
    if unknown:
        raise PayloadError(f"the payload holds {sorted(unknown)}, which this client does not know.")
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
            _hold(state, part, task.versions[part], start.with_parts({part: origin}), (part,))
        parts[part] = rotate_factor(part, origin, _rotation(part, record, start, device))
    parts.update(_base(task, sent, state, start, device))
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
            raise PayloadError(f"part {part}{INDICES} names rows that a DCT of this size does not have.")
        return {name: dct_rows(indices[name], A) for name, A in factor.items()}
    init = method.init_a if part == "A" else method.init_b
    if task.versions[part] == 0 and init in SEEDED_INITIALIZATIONS:
        return factor
    if _held_version(state, part) != task.versions[part]:
        raise StaleCacheError(part)
    return payload.unpack(state.array_records[f"{_HELD}.{part}"], [part], start, device)[part]


def _rotation(part: Part, record: ArrayRecord, start: Adapter, device: torch.device) -> Mapping[str, Tensor] | None:
    key = f"{part}{ROTATION}"
    if key not in record:
        return None
    rank = {name: len(A) for name, A in start.A.items()}
    like = {name: torch.empty(r, r, dtype=torch.float64) for name, r in rank.items()}
    return payload.unpack_sites(record[key], key, like, device)


def _base(
    task: TrainTask,
    sent: Mapping[Part, Mapping[str, Tensor]],
    state: RecordDict,
    start: Adapter,
    device: torch.device,
) -> dict[Part, Mapping[str, Tensor]]:
    """Return the whole base: what is held up to ``base_start``, and what was sent after it."""
    if not task.versions["base"]:
        return {}
    parts: dict[Part, Mapping[str, Tensor]] = {part: sent.get(part, {}) for part in _BASE}
    if task.base_start:
        record = state.array_records.get(f"{_HELD}.base")
        held = payload.unpack(record, _BASE, start, device) if record else None
        if held is None or next(iter(held["base_left"].values())).shape[1] < task.base_start:
            raise StaleCacheError("base")
        left = {name: old[:, : task.base_start] for name, old in held["base_left"].items()}
        right = {name: old[: task.base_start] for name, old in held["base_right"].items()}
        parts = {
            "base_left": _appended(left, parts["base_left"], dim=1),
            "base_right": _appended(right, parts["base_right"], dim=0),
        }
    if "base" in task.keep:
        _hold(state, "base", task.versions["base"], start.with_parts(parts), _BASE)
    return parts


def _appended(held: Mapping[str, Tensor], new: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    return {name: torch.cat([old, new[name]], dim) if new else old for name, old in held.items()}


def _hold(state: RecordDict, name: str, version: int, adapter: Adapter, parts: tuple[Part, ...]) -> None:
    if _held_version(state, name) != version:
        state[f"{_HELD}.{name}"] = payload.pack(adapter, parts)
        state[f"{_HELD}.{name}.version"] = ConfigRecord({"version": version})


def _held_version(state: RecordDict, name: str) -> int | None:
    record = state.config_records.get(f"{_HELD}.{name}.version")
    return None if record is None else int(record["version"])  # type: ignore[arg-type]

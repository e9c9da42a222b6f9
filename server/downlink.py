"""What each client is sent: no more than it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedsvd.lora.adapter import Adapter, Part, truncate_rank
from fedsvd.lora.initialization import SEEDED_INITIALIZATIONS, dct_indices
from fedsvd.methods import Method, State, Step
from fedsvd.wire import payload
from fedsvd.wire.factor_versions import FACTOR_PARTS, FactorVersion
from fedsvd.wire.train_messages import INDICES, ROTATION, VERSIONED, TrainTask

_VERSIONS = "travel.versions"


@dataclass(frozen=True)
class ClientRequest:
    """One client's request.

    Attributes:
        task: What it is asked to do, and what it is taken to hold.
        factors: What it is sent.
    """

    task: TrainTask
    factors: ArrayRecord


@dataclass
class Downlink:
    """Keeps account of where each factor stands and of what each client holds.

    Attributes:
        method: The run's.
        adapter: The global adapter.
        holding: Whether clients may be taken to hold what they were sent; not where secure sums are taken, in which a
            client that does not would be a dropout.
        weights: Each site's frozen weight, from which ``init_a=dct`` picks its rows.
    """

    method: Method
    adapter: Adapter
    holding: bool = True
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    _tracks: dict[Part, FactorVersion] = field(default_factory=dict)
    _held: dict[int, dict[str, int]] = field(default_factory=dict)
    _pending: dict[int, dict[str, int]] = field(default_factory=dict)
    _base_ranks: dict[int, int] = field(default_factory=dict)
    # One round's arrays: many clients are sent the same ones, and memory is not to grow with their number.
    _packed: dict[tuple[str, int | None], ArrayRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in FACTOR_PARTS:
            self._tracks.setdefault(part, FactorVersion(part, 0, dict(self.adapter.part(part))))

    def request(self, node: int, task: TrainTask, extra: frozenset[Part], rank: int | None = None) -> ClientRequest:
        """Build one client's request.

        Args:
            node: The client's node.
            task: What all clients are asked to do.
            extra: Parts beside A, B and the base that travel in full.
            rank: The client's own rank, where it is lower than the adapter's.
        """
        keep = self._keep(task) if rank is None else frozenset()
        adapter = self.adapter if rank is None else truncate_rank(self.adapter, rank)
        held = self._held.get(node, {}) if self.holding else {}
        record = ArrayRecord()
        for part in sorted(extra):
            record.update(self._once(part, rank, partial(payload.pack, adapter, [part])))
        versions: dict[str, int] = {part: self._tracks[part].version for part in FACTOR_PARTS}
        versions["base"] = self._base_version
        for part in FACTOR_PARTS:
            if part in self.method.traits.personal:
                continue
            if rank is None:
                record.update(self._factor(part, held.get(part)))
            else:
                record.update(self._once(part, rank, partial(payload.pack, adapter, [part])))
        start = 0
        if versions["base"]:
            start = self._base_ranks.get(held.get("base", 0), 0) if rank is None else 0
            tail: tuple[Part, Part] = ("base_left", "base_right")
            record.update(self._once("base", start, lambda: payload.pack(_tail(self.adapter, start), tail)))
        self._pending[node] = {name: versions[name] for name in VERSIONED if name in keep}
        return ClientRequest(replace(task, versions=versions, keep=keep, base_start=start), record)

    def mark_delivered(self, node: int) -> None:
        """A client has answered: it holds what it was told to."""
        self._held.setdefault(node, {}).update(self._pending.pop(node, {}))

    def forget(self, node: int) -> None:
        """A client does not hold what it was taken to."""
        self._held.pop(node, None)

    def advance(self, step: Step, server_round: int) -> Adapter:
        """Take in a server step, and return its adapter with the factors as clients will compute them."""
        for part in FACTOR_PARTS:
            self._tracks[part] = self._tracks[part].after(
                step.adapter.part(part), step.rotations.get(part), server_round
            )
        adapter = step.adapter.with_parts({part: self._tracks[part].current for part in FACTOR_PARTS})
        if adapter.base_rank:
            old = self.adapter.base_rank
            grown = old > 0 and _starts_with(adapter, self.adapter)
            kept = self._base_ranks if grown else {}
            self._base_ranks = {**kept, server_round: adapter.base_rank}
        self.adapter = adapter
        self._packed.clear()
        return adapter

    @property
    def state(self) -> State:
        """What a resumed run needs to go on as this one would have."""
        numbers: dict[str, Tensor] = {part: torch.tensor(track.version) for part, track in self._tracks.items()}
        numbers["base"] = torch.tensor(self._base_version)
        kept: dict[str, Mapping[str, Tensor]] = {_VERSIONS: numbers}
        for part, track in self._tracks.items():
            if track.rotation is not None:
                kept[f"travel.{part}.origin"], kept[f"travel.{part}.rotation"] = track.origin, track.rotation
        return kept

    def restore(self, state: State) -> None:
        """Take up what `state` returned; clients are taken to hold nothing."""
        for part in FACTOR_PARTS:
            origin = state.get(f"travel.{part}.origin", self.adapter.part(part))
            version = int(state[_VERSIONS][part])
            self._tracks[part] = FactorVersion(part, version, origin, state.get(f"travel.{part}.rotation"))
        base = int(state[_VERSIONS]["base"])
        self._base_ranks = {base: self.adapter.base_rank} if base else {}
        self._packed.clear()

    def _once(self, name: str, variant: int | None, pack: Callable[[], ArrayRecord]) -> ArrayRecord:
        key = name, variant
        if key not in self._packed:
            self._packed[key] = pack()
        return self._packed[key]

    @property
    def _base_version(self) -> int:
        return max(self._base_ranks, default=0)

    def _keep(self, task: TrainTask) -> frozenset[str]:
        """Name what will be the same, but for a rotation, in later rounds: what nobody trains now."""
        if not self.holding:
            return frozenset()
        still = {part for part in FACTOR_PARTS if part not in task.trains and not self._drawable(part)}
        return frozenset(still | ({"base"} if self._base_version else set()))

    def _drawable(self, part: Part) -> bool:
        init = self.method.init_a if part == "A" else self.method.init_b
        return self._tracks[part].version == 0 and init in SEEDED_INITIALIZATIONS

    def _factor(self, part: Part, held_version: int | None) -> ArrayRecord:
        track, record = self._tracks[part], ArrayRecord()
        if not self._drawable(part) and held_version != track.version:
            record.update(self._once(f"{part} origin", None, lambda: self._origin(part, track)))
        rotation = track.rotation
        if rotation is not None:
            key = f"{part}{ROTATION}"
            record.update(self._once(key, None, lambda: ArrayRecord({key: payload.pack_sites(rotation, np.float64)})))
        return record

    def _origin(self, part: Part, track: FactorVersion) -> ArrayRecord:
        if part == "A" and track.version == 0 and self.method.init_a == "dct":
            indices = {name: dct_indices(self.weights[name], len(A)) for name, A in track.origin.items()}
            return ArrayRecord({f"{part}{INDICES}": payload.pack_sites(indices, np.int32)})
        return payload.pack(self.adapter.with_parts({part: track.origin}), [part])


def _tail(adapter: Adapter, start: int) -> Adapter:
    return adapter.with_parts(
        {
            "base_left": {name: left[:, start:] for name, left in adapter.base_left.items()},
            "base_right": {name: right[start:] for name, right in adapter.base_right.items()},
        }
    )


def _starts_with(adapter: Adapter, before: Adapter) -> bool:
    rank = before.base_rank
    return all(torch.equal(adapter.base_left[name][:, :rank], left) for name, left in before.base_left.items())

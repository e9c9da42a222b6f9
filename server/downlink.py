"""The downlink: what is sent to each client, given what it has cached."""

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

# Key of the version numbers in the checkpoint's state.
_VERSIONS_KEY = "travel.versions"


@dataclass(frozen=True)
class ClientRequest:
    """A train request for one client.

    Attributes:
        task: The client's task, and the cached versions that the server assumes.
        factors: The arrays to send.
    """

    task: TrainTask
    factors: ArrayRecord


@dataclass
class Downlink:
    """Tracks the version of each factor and the versions in each client's cache, and builds train requests.

    Attributes:
        method: The run's method.
        adapter: The global adapter.
        use_cache: Whether to rely on the clients' caches. False with secure aggregation, where a client with a stale
            cache would count as a dropout.
        weights: Frozen weight of each site, from which ``init_a=dct`` selects its rows.
    """

    method: Method
    adapter: Adapter
    use_cache: bool = True
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    _versions: dict[Part, FactorVersion] = field(default_factory=dict)
    _cached: dict[int, dict[str, int]] = field(default_factory=dict)
    _pending: dict[int, dict[str, int]] = field(default_factory=dict)
    _base_ranks: dict[int, int] = field(default_factory=dict)
    # The arrays of one round, shared by all clients, so that memory does not grow with the number of clients.
    _packed: dict[tuple[str, int | None], ArrayRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in FACTOR_PARTS:
            self._versions.setdefault(part, FactorVersion(part, 0, dict(self.adapter.part(part))))

    def request(
        self, node: int, task: TrainTask, full_parts: frozenset[Part], rank: int | None = None
    ) -> ClientRequest:
        """Build one client's request.

        Args:
            node: The client's node ID.
            task: The task that all clients have in this round, with the client's own versions of its personal factors.
            full_parts: Parts besides A, B and the base, which are sent in full.
            rank: The client's rank if it is lower than the adapter's, else None.
        """
        keep = self._parts_to_cache(task) if rank is None else frozenset()
        adapter = self.adapter if rank is None else truncate_rank(self.adapter, rank)
        cached = self._cached.get(node, {}) if self.use_cache else {}
        record = ArrayRecord()
        for part in sorted(full_parts):
            record.update(self._pack_once(part, rank, partial(payload.pack, adapter, [part])))
        versions: dict[str, int] = {part: self._versions[part].version for part in FACTOR_PARTS}
        versions["base"] = self._base_version
        versions |= {part: task.versions[part] for part in self.method.traits.personal}
        for part in FACTOR_PARTS:
            if part in self.method.traits.personal or not self._needs_factors(task):
                continue
            if rank is None:
                record.update(self._pack_factor(part, cached.get(part)))
            else:
                record.update(self._pack_once(part, rank, partial(payload.pack, adapter, [part])))
        start = 0
        if versions["base"]:
            start = self._base_ranks.get(cached.get("base", 0), 0) if rank is None else 0
            base: tuple[Part, Part] = ("base_left", "base_right")
            record.update(self._pack_once("base", start, lambda: payload.pack(_base_after(self.adapter, start), base)))
        self._pending[node] = {name: versions[name] for name in VERSIONED if name in keep}
        return ClientRequest(replace(task, versions=versions, keep=keep, base_start=start), record)

    def mark_delivered(self, node: int) -> None:
        """Record that a client has answered, and therefore cached the parts that its request asked it to cache."""
        self._cached.setdefault(node, {}).update(self._pending.pop(node, {}))

    def clear_client(self, node: int) -> None:
        """Record that a client's cache is empty."""
        self._cached.pop(node, None)

    def advance(self, step: Step, server_round: int) -> Adapter:
        """Apply a server step, and return its adapter with the factors as clients will compute them."""
        for part in FACTOR_PARTS:
            self._versions[part] = self._versions[part].after(
                step.adapter.part(part), step.rotations.get(part), server_round
            )
        adapter = step.adapter.with_parts({part: self._versions[part].current for part in FACTOR_PARTS})
        if adapter.base_rank:
            old = self.adapter.base_rank
            extended = old > 0 and _extends_base(adapter, self.adapter)
            earlier = self._base_ranks if extended else {}
            self._base_ranks = {**earlier, server_round: adapter.base_rank}
        self.adapter = adapter
        self._packed.clear()
        return adapter

    @property
    def state(self) -> State:
        """The state that a resumed run needs to continue as this run would have."""
        numbers: dict[str, Tensor] = {part: torch.tensor(factor.version) for part, factor in self._versions.items()}
        numbers["base"] = torch.tensor(self._base_version)
        state: dict[str, Mapping[str, Tensor]] = {_VERSIONS_KEY: numbers}
        for part, factor in self._versions.items():
            if factor.rotation is not None:
                state[f"travel.{part}.origin"], state[f"travel.{part}.rotation"] = factor.origin, factor.rotation
        return state

    def restore(self, state: State) -> None:
        """Restore what `state` returned; all caches of clients are assumed to be empty."""
        self._versions.update(read_versions(state, self.adapter))
        base = int(state[_VERSIONS_KEY]["base"])
        self._base_ranks = {base: self.adapter.base_rank} if base else {}
        self._packed.clear()

    def _pack_once(self, name: str, variant: int | None, pack: Callable[[], ArrayRecord]) -> ArrayRecord:
        key = name, variant
        if key not in self._packed:
            self._packed[key] = pack()
        return self._packed[key]

    @property
    def _base_version(self) -> int:
        return max(self._base_ranks, default=0)

    def _parts_to_cache(self, task: TrainTask) -> frozenset[str]:
        """Return the parts that clients cache: those that are not trained now, so later rounds only rotate them."""
        if not self.use_cache:
            return frozenset()
        untrained = {part for part in FACTOR_PARTS if part not in task.trains and not self._is_seeded(part)}
        return frozenset(untrained | ({"base"} if self._base_version else set()))

    def _needs_factors(self, task: TrainTask) -> bool:
        """Return whether a round depends on the factors: not if it trains none, and B A is still 0 at every client."""
        is_zero = "zeros" in (self.method.init_a, self.method.init_b)
        untouched = is_zero and all(self._is_seeded(part) for part in FACTOR_PARTS)
        return bool(task.trains - {"head"}) or not untouched

    def _is_seeded(self, part: Part) -> bool:
        init = self.method.init_a if part == "A" else self.method.init_b
        return self._versions[part].version == 0 and init in SEEDED_INITIALIZATIONS

    def _pack_factor(self, part: Part, cached_version: int | None) -> ArrayRecord:
        factor, record = self._versions[part], ArrayRecord()
        if not self._is_seeded(part) and cached_version != factor.version:
            record.update(self._pack_once(f"{part} origin", None, lambda: self._pack_origin(part, factor)))
        rotation = factor.rotation
        if rotation is not None:
            key = f"{part}{ROTATION}"
            record.update(
                self._pack_once(key, None, lambda: ArrayRecord({key: payload.pack_sites(rotation, np.float64)}))
            )
        return record

    def _pack_origin(self, part: Part, factor: FactorVersion) -> ArrayRecord:
        if part == "A" and factor.version == 0 and self.method.init_a == "dct":
            indices = {name: dct_indices(self.weights[name], len(A)) for name, A in factor.origin.items()}
            return ArrayRecord({f"{part}{INDICES}": payload.pack_sites(indices, np.int32)})
        return payload.pack(self.adapter.with_parts({part: factor.origin}), [part])


def read_versions(state: State, adapter: Adapter) -> dict[Part, FactorVersion]:
    """Return the versions of the factors that `Downlink.state` holds.

    Args:
        state: The state.
        adapter: The global adapter at that time.
    """
    versions = {}
    for part in FACTOR_PARTS:
        origin = state.get(f"travel.{part}.origin", adapter.part(part))
        rotation = state.get(f"travel.{part}.rotation")
        versions[part] = FactorVersion(part, int(state[_VERSIONS_KEY][part]), origin, rotation)
    return versions


def _base_after(adapter: Adapter, start: int) -> Adapter:
    return adapter.with_parts(
        {
            "base_left": {name: left[:, start:] for name, left in adapter.base_left.items()},
            "base_right": {name: right[start:] for name, right in adapter.base_right.items()},
        }
    )


def _extends_base(adapter: Adapter, before: Adapter) -> bool:
    rank = before.base_rank
    return all(torch.equal(adapter.base_left[name][:, :rank], left) for name, left in before.base_left.items())

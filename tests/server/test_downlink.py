"""The downlink with client caches: less traffic, the same model; real clients in process."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from safetensors.torch import load_file

import client.evaluation
import fedsvd
import server.strategy
from client.factor_cache import receive_factors
from fedsvd.config.compose import compose
from fedsvd.errors import PayloadError, StaleCacheError
from fedsvd.lora.adapter import Adapter, Part
from fedsvd.lora.initialization import dct_rows, initialize_factors
from fedsvd.lora.stacked import merge
from fedsvd.methods import Step, build_method
from fedsvd.methods.aggregate import Reply
from fedsvd.runs.folder import read_rows
from fedsvd.runtime.model import initial_adapter
from fedsvd.wire import payload, train_messages
from server.checkpoint import load_latest
from server.downlink import Downlink

pytestmark = pytest.mark.slow

B: frozenset[Part] = frozenset({"B"})
OVERRIDES = [
    "experiment=smoke", "plots=false", "privacy=none", "train.num_rounds=5", "train.learning_rate=1",
    "train.head=private",
]  # fmt: skip
VARIANTS = {
    "fedsvd": ["method=fedsvd"],
    "weight_svd": ["method=fedsvd", "method.init_a=weight_svd"],
    "dct": ["method=fedsvd", "method.init_a=dct"],
    "pivot": ["method=fedsvd", "method.pivot=BBAA"],
    "ffa": ["method=ffa_lora", "method.init_a=dct"],
    "rolora": ["method=rolora"],
    "fedex": ["method=fedex_lora"],
    "flora": ["method=flora"],
    "fed_sb": ["method=fed_sb"],
}


# The rest take the same path and run with the slow tests.
FAST_VARIANTS = ("fedsvd", "weight_svd", "fedex")
Run = tuple[dict[str, torch.Tensor], list[int]]


def variants(*names: str) -> list[Any]:
    return [pytest.param(name, marks=[] if name in FAST_VARIANTS else pytest.mark.slow) for name in names]


def train(folder: Path, variant: str) -> Run:
    """Return the weight updates of a whole run, and the bytes sent to clients by round."""
    fedsvd.train(*OVERRIDES, *VARIANTS[variant], run_dir=folder)
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in saved if key.endswith(".lora_A.weight")]
    updates = {name: saved[f"{name}.lora_B.weight"] @ saved[f"{name}.lora_A.weight"] for name in names}
    return updates, [row["bytes_down"] for row in read_rows(folder / "metrics.jsonl")[1:]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Runs with caches, of which each variant takes place once."""

    @lru_cache
    def run(variant: str) -> Run:
        return train(tmp_path_factory.mktemp("uninterrupted"), variant)

    return run


@pytest.mark.parametrize("variant", variants(*VARIANTS))
def test_caching_changes_the_traffic_but_not_the_model(
    variant: str, uninterrupted: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, cached_bytes = uninterrupted(variant)
    monkeypatch.setattr(
        server.strategy, "Downlink", lambda *args, **kwargs: Downlink(*args, **{**kwargs, "use_cache": False})
    )
    uncached, uncached_bytes = train(tmp_path, variant)

    assert any(update.abs().max() > 1e-4 for update in cached.values())
    for name, update in cached.items():
        torch.testing.assert_close(update, uncached[name], atol=1e-6, rtol=1e-5)
    assert cached_bytes[0] == uncached_bytes[0]
    assert all(less <= more for less, more in zip(cached_bytes, uncached_bytes, strict=True))
    # Factors that are drawn from the seed need no cache.
    assert (sum(cached_bytes) < sum(uncached_bytes)) == (variant != "fedsvd")


@pytest.mark.parametrize("variant", variants("weight_svd", "dct", "pivot", "fedex"))
def test_client_that_lost_its_cache_is_sent_the_factors_within_the_round(
    variant: str, uninterrupted: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, expected_bytes = uninterrupted(variant)
    calls = 0

    def receive_with_one_loss(
        task: train_messages.TrainTask, record: ArrayRecord, state: RecordDict, *rest: object
    ) -> Adapter:
        nonlocal calls
        calls += 1
        if calls == 8:
            # The second client restarts before round 4.
            for key in [key for key in state if key.startswith("held.")]:
                del state[key]
        return receive_factors(task, record, state, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(client.evaluation, "receive_factors", receive_with_one_loss)
    updates, bytes_down = train(tmp_path, variant)

    rows = read_rows(tmp_path / "metrics.jsonl")
    assert all(row["clients_used"] == 2 and not row["clients_refused"] for row in rows[1:])
    for name, update in expected.items():
        torch.testing.assert_close(updates[name], update, atol=1e-6, rtol=1e-5)
    assert sum(bytes_down) > sum(expected_bytes)


@pytest.mark.parametrize("variant", variants("weight_svd", "pivot", "fedex", "rolora"))
def test_resumed_run_gives_the_same_model(variant: str, uninterrupted: Callable[[str], Run], tmp_path: Path) -> None:
    expected, _ = uninterrupted(variant)
    fedsvd.train(*OVERRIDES, *VARIANTS[variant], "train.num_rounds=3", run_dir=tmp_path)
    fedsvd.train(f"resume={tmp_path}", "train.num_rounds=5")

    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, update in expected.items():
        resumed = saved[f"{name}.lora_B.weight"] @ saved[f"{name}.lora_A.weight"]
        torch.testing.assert_close(resumed, update, atol=1e-6, rtol=1e-5)


@pytest.fixture
def adapter() -> Adapter:
    shapes = Adapter(
        A={"one": torch.zeros(2, 6), "two": torch.zeros(2, 5)},
        B={"one": torch.zeros(4, 2), "two": torch.zeros(3, 2)},
        head={},
        scale={"one": 1.0, "two": 1.0},
    )
    return initialize_factors(shapes, init_a="orthonormal", init_b="zeros", seed=0)


def perturbed(adapter: Adapter, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return adapter.with_parts({"B": {n: t + torch.randn(t.shape, generator=generator) for n, t in adapter.B.items()}})


def test_hundreds_of_rotations_do_not_drift(adapter: Adapter) -> None:
    method = build_method({"name": "fedsvd"})
    downlink, state = Downlink(method, adapter), RecordDict()
    for server_round in range(1, 301):
        reply = Reply(0, 1, {"B": perturbed(downlink.adapter, server_round).B})
        downlink.advance(method.server_step(downlink.adapter, [reply], server_round, {}), server_round)
    request = downlink.request(7, train_messages.TrainTask(301, B, B), frozenset())
    received = receive_factors(request.task, request.factors, state, adapter, method, torch.device("cpu"))

    assert set(request.factors) == {"B", "A.rotation"}
    for name, A in downlink.adapter.A.items():
        assert torch.equal(received.A[name], A)
        torch.testing.assert_close(A @ A.mT, torch.eye(2), atol=1e-6, rtol=0)


def test_only_missing_columns_of_the_base_are_sent(adapter: Adapter) -> None:
    method = build_method({"name": "fedex_lora"})
    downlink, state = Downlink(method, adapter), RecordDict()
    task = train_messages.TrainTask(2, frozenset({"A", "B"}), frozenset({"A", "B"}))
    columns = []
    for server_round in range(1, 6):
        generator = torch.Generator().manual_seed(server_round)
        left = {n: torch.randn(len(t), 2, generator=generator) for n, t in adapter.B.items()}
        right = {n: torch.randn(2, t.shape[1], generator=generator) for n, t in adapter.A.items()}
        downlink.advance(Step(merge(downlink.adapter, left, right)), server_round)
        request = downlink.request(7, task, frozenset())
        received = receive_factors(request.task, request.factors, state, adapter, method, torch.device("cpu"))
        downlink.mark_delivered(7)
        columns.append((request.factors["base_left"].shape[0] // 7, downlink.adapter.base_rank))
        for name, full_left in downlink.adapter.base_left.items():
            torch.testing.assert_close(
                received.base_left[name] @ received.base_right[name], full_left @ downlink.adapter.base_right[name]
            )
    # Beyond twice the full rank of 4, the base is recompressed and sent in full.
    assert columns == [(2, 2), (2, 4), (2, 6), (2, 8), (4, 4)]


def test_client_with_an_empty_cache_raises_stale_cache_error(adapter: Adapter) -> None:
    method = build_method({"name": "fedsvd", "init_a": "weight_svd"})
    downlink = Downlink(method, adapter)
    task = train_messages.TrainTask(1, B, B)
    first = downlink.request(7, task, frozenset())
    downlink.mark_delivered(7)
    second = downlink.request(7, task, frozenset())

    assert (set(first.factors), set(second.factors)) == ({"A"}, set())
    with pytest.raises(StaleCacheError):
        receive_factors(second.task, second.factors, RecordDict(), adapter, method, torch.device("cpu"))


def test_dct_rows_are_sent_as_indices(adapter: Adapter) -> None:
    method = build_method({"name": "ffa_lora", "init_a": "dct"})
    weights = {"one": torch.randn(4, 6), "two": torch.randn(3, 5)}
    start = initialize_factors(adapter, init_a="dct", init_b="zeros", seed=0, weights=weights)
    request = Downlink(method, start, weights=weights).request(7, train_messages.TrainTask(1, B, B), frozenset())

    received = receive_factors(request.task, request.factors, RecordDict(), adapter, method, torch.device("cpu"))

    assert payload.payload_bytes(request.factors) < 200
    assert all(torch.equal(received.A[name], start.A[name]) for name in start.A)
    rows = dct_rows(torch.arange(6), torch.zeros(6, 6, dtype=torch.float64))
    torch.testing.assert_close(rows @ rows.mT, torch.eye(6, dtype=torch.float64))


def test_invalid_indices_and_unknown_arrays_raise(adapter: Adapter) -> None:
    method = build_method({"name": "ffa_lora", "init_a": "dct"})
    indices = {"one": torch.tensor([0, 6]), "two": torch.tensor([0, 1])}
    for record in (
        ArrayRecord({"A.indices": payload.pack_sites(indices, np.int32)}),
        ArrayRecord({"C": payload.pack_sites(indices, np.int32)}),
        ArrayRecord({"A.rotation": payload.pack_sites(indices, np.float64)}),
    ):
        with pytest.raises(PayloadError):
            receive_factors(
                train_messages.TrainTask(1, B, B), record, RecordDict(), adapter, method, torch.device("cpu")
            )


def test_checkpoint_contains_the_downlink_state(tmp_path: Path) -> None:
    train(tmp_path, "fedsvd")
    config = compose([*OVERRIDES, *VARIANTS["fedsvd"]])
    state = load_latest(tmp_path / "checkpoints", initial_adapter(config, build_method(config.method))).state
    assert int(state["travel.versions"]["A"]) == 0
    assert {"travel.A.origin", "travel.A.rotation"} <= set(state)

"""Clients are sent no more than they lack, and end up with the same model; real clients, in process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from safetensors.torch import load_file

import client.evaluation
import server.strategy
from client.factor_cache import receive_factors
from fedsvd.cli import main
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

B: frozenset[Part] = frozenset({"B"})
WORDS = ["experiment=smoke", "privacy=none", "train.num_rounds=5", "train.learning_rate=5", "train.head=private"]
KINDS = {
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


def train(folder: Path, kind: str) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Return the weight updates of a whole run, and the bytes sent to clients by round."""
    assert main(["train", *WORDS, *KINDS[kind], f"hydra.run.dir={folder}"]) == 0
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in saved if key.endswith(".lora_A.weight")]
    updates = {name: saved[f"{name}.lora_B.weight"] @ saved[f"{name}.lora_A.weight"] for name in names}
    return updates, [row["bytes_down"] for row in read_rows(folder / "metrics.jsonl")[1:]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_clients_hold_changes_the_traffic_and_not_the_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thrifty, few = train(tmp_path / "thrifty", kind)
    monkeypatch.setattr(
        server.strategy, "Downlink", lambda *args, **kwargs: Downlink(*args, **{**kwargs, "holding": False})
    )
    generous, many = train(tmp_path / "generous", kind)

    assert any(update.abs().max() > 1e-4 for update in thrifty.values())
    for name, update in thrifty.items():
        torch.testing.assert_close(update, generous[name], atol=1e-6, rtol=1e-5)
    assert few[0] == many[0]
    assert all(less <= more for less, more in zip(few, many, strict=True))
    # What the seed draws need not be held at all.
    assert (sum(few) < sum(many)) == (kind != "fedsvd")


@pytest.mark.parametrize("kind", ["weight_svd", "dct", "pivot", "fedex"])
def test_a_client_that_lost_what_it_held_is_sent_it_within_the_round(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, few = train(tmp_path / "whole", kind)
    calls = 0

    def forgetful(task: train_messages.TrainTask, record: ArrayRecord, state: RecordDict, *rest: object) -> Adapter:
        nonlocal calls
        calls += 1
        if calls == 8:
            # The second client, started anew before round 4.
            for key in [key for key in state if key.startswith("held.")]:
                del state[key]
        return receive_factors(task, record, state, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(client.evaluation, "receive_factors", forgetful)
    found, bytes_down = train(tmp_path / "forgetful", kind)

    rows = read_rows(tmp_path / "forgetful" / "metrics.jsonl")
    assert all(row["clients_used"] == 2 and not row["clients_refused"] for row in rows[1:])
    for name, update in expected.items():
        torch.testing.assert_close(found[name], update, atol=1e-6, rtol=1e-5)
    assert sum(bytes_down) > sum(few)


@pytest.mark.parametrize("kind", ["weight_svd", "pivot", "fedex", "rolora"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(kind: str, tmp_path: Path) -> None:
    expected, _ = train(tmp_path / "whole", kind)
    cut = ["train.num_rounds=3", f"hydra.run.dir={tmp_path / 'cut'}"]
    assert main(["train", *WORDS, *KINDS[kind], *cut]) == 0
    assert main(["train", f"resume={tmp_path / 'cut'}", "train.num_rounds=5"]) == 0

    saved = load_file(tmp_path / "cut" / "adapter" / "adapter_model.safetensors")
    for name, update in expected.items():
        found = saved[f"{name}.lora_B.weight"] @ saved[f"{name}.lora_A.weight"]
        torch.testing.assert_close(found, update, atol=1e-6, rtol=1e-5)


@pytest.fixture
def adapter() -> Adapter:
    shapes = Adapter(
        A={"one": torch.zeros(2, 6), "two": torch.zeros(2, 5)},
        B={"one": torch.zeros(4, 2), "two": torch.zeros(3, 2)},
        head={},
        scale={"one": 1.0, "two": 1.0},
    )
    return initialize_factors(shapes, init_a="orthonormal", init_b="zeros", seed=0)


def moved(adapter: Adapter, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return adapter.with_parts({"B": {n: t + torch.randn(t.shape, generator=generator) for n, t in adapter.B.items()}})


def test_hundreds_of_rotations_do_not_drift(adapter: Adapter) -> None:
    method = build_method({"name": "fedsvd"})
    downlink, state = Downlink(method, adapter), RecordDict()
    for server_round in range(1, 301):
        reply = Reply(0, 1, {"B": moved(downlink.adapter, server_round).B})
        downlink.advance(method.server_step(downlink.adapter, [reply], server_round, {}), server_round)
    sent = downlink.request(7, train_messages.TrainTask(301, B, B), frozenset())
    received = receive_factors(sent.task, sent.factors, state, adapter, method, torch.device("cpu"))

    assert set(sent.factors) == {"B", "A.rotation"}
    for name, A in downlink.adapter.A.items():
        assert torch.equal(received.A[name], A)
        torch.testing.assert_close(A @ A.mT, torch.eye(2), atol=1e-6, rtol=0)


def test_a_base_travels_by_the_columns_that_a_client_lacks(adapter: Adapter) -> None:
    method = build_method({"name": "fedex_lora"})
    downlink, state = Downlink(method, adapter), RecordDict()
    task = train_messages.TrainTask(2, frozenset({"A", "B"}), frozenset({"A", "B"}))
    columns = []
    for server_round in range(1, 6):
        generator = torch.Generator().manual_seed(server_round)
        left = {n: torch.randn(len(t), 2, generator=generator) for n, t in adapter.B.items()}
        right = {n: torch.randn(2, t.shape[1], generator=generator) for n, t in adapter.A.items()}
        downlink.advance(Step(merge(downlink.adapter, left, right)), server_round)
        sent = downlink.request(7, task, frozenset())
        received = receive_factors(sent.task, sent.factors, state, adapter, method, torch.device("cpu"))
        downlink.mark_delivered(7)
        columns.append((sent.factors["base_left"].shape[0] // 7, downlink.adapter.base_rank))
        for name, whole in downlink.adapter.base_left.items():
            torch.testing.assert_close(
                received.base_left[name] @ received.base_right[name], whole @ downlink.adapter.base_right[name]
            )
    # Beyond twice the full rank of 4 the base is written anew, and travels whole.
    assert columns == [(2, 2), (2, 4), (2, 6), (2, 8), (4, 4)]


def test_a_client_that_holds_nothing_says_so(adapter: Adapter) -> None:
    method = build_method({"name": "fedsvd", "init_a": "weight_svd"})
    downlink = Downlink(method, adapter)
    task = train_messages.TrainTask(1, B, B)
    first = downlink.request(7, task, frozenset())
    downlink.mark_delivered(7)
    second = downlink.request(7, task, frozenset())

    assert (set(first.factors), set(second.factors)) == ({"A"}, set())
    with pytest.raises(StaleCacheError):
        receive_factors(second.task, second.factors, RecordDict(), adapter, method, torch.device("cpu"))


def test_indices_are_enough_for_rows_of_a_dct(adapter: Adapter) -> None:
    method = build_method({"name": "ffa_lora", "init_a": "dct"})
    weights = {"one": torch.randn(4, 6), "two": torch.randn(3, 5)}
    start = initialize_factors(adapter, init_a="dct", init_b="zeros", seed=0, weights=weights)
    sent = Downlink(method, start, weights=weights).request(7, train_messages.TrainTask(1, B, B), frozenset())

    received = receive_factors(sent.task, sent.factors, RecordDict(), adapter, method, torch.device("cpu"))

    assert payload.payload_bytes(sent.factors) < 200
    assert all(torch.equal(received.A[name], start.A[name]) for name in start.A)
    rows = dct_rows(torch.arange(6), torch.zeros(6, 6, dtype=torch.float64))
    torch.testing.assert_close(rows @ rows.mT, torch.eye(6, dtype=torch.float64))


def test_indices_and_arrays_that_do_not_exist_are_refused(adapter: Adapter) -> None:
    method = build_method({"name": "ffa_lora", "init_a": "dct"})
    wrong = {"one": torch.tensor([0, 6]), "two": torch.tensor([0, 1])}
    for record in (
        ArrayRecord({"A.indices": payload.pack_sites(wrong, np.int32)}),
        ArrayRecord({"C": payload.pack_sites(wrong, np.int32)}),
        ArrayRecord({"A.rotation": payload.pack_sites(wrong, np.float64)}),
    ):
        with pytest.raises(PayloadError):
            receive_factors(
                train_messages.TrainTask(1, B, B), record, RecordDict(), adapter, method, torch.device("cpu")
            )


def test_checkpoints_hold_what_the_downlink_needs(tmp_path: Path) -> None:
    train(tmp_path, "fedsvd")
    config = compose([*WORDS, *KINDS["fedsvd"]])
    state = load_latest(tmp_path / "checkpoints", initial_adapter(config, build_method(config.method))).state
    assert int(state["travel.versions"]["A"]) == 0
    assert {"travel.A.origin", "travel.A.rotation"} <= set(state)

"""Checkpoints are written atomically, pruned, and validated when loaded."""

import json
import os
from pathlib import Path

import pytest
import torch

from fedsvd.errors import RunError
from fedsvd.lora.adapter import Adapter
from server import checkpoint
from server.checkpoint import MAX_CHECKPOINTS, Checkpoint, load_checkpoint, load_latest, save_checkpoint, saved_rounds


def make_adapter(seed: int = 0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        A={"x": torch.randn(2, 5, generator=generator)},
        B={"x": torch.randn(4, 2, generator=generator)},
        head={"weight": torch.randn(3, generator=generator)},
        scale={"x": 2.0},
    )


def test_checkpoint_round_trip_is_exact(tmp_path: Path) -> None:
    saved = Checkpoint(3, make_adapter(1), [{"server_round": 3, "accuracy": 0.1 + 0.2}], {"0": {"epsilon": 1.5}})

    save_checkpoint(tmp_path, saved)
    loaded = load_latest(tmp_path, make_adapter())

    assert loaded.server_round == 3
    assert loaded.history == saved.history
    assert loaded.clients == saved.clients
    for part in ("A", "B", "head"):
        for name, tensor in saved.adapter.part(part).items():
            assert torch.equal(loaded.adapter.part(part)[name], tensor)


def test_a_checkpoint_is_on_the_disk_before_and_after_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), sync(descriptor)))
    monkeypatch.setattr(Path, "rename", lambda path, target: (synced.append(0), rename(path, target))[1])

    save_checkpoint(tmp_path, Checkpoint(1, make_adapter(), [], {}))

    saved = tmp_path / "round-000001"
    renamed = synced.index(0)
    assert (saved / "adapter.safetensors").stat().st_ino in synced[:renamed]
    assert synced[renamed + 1 :] == [tmp_path.stat().st_ino]


def test_only_the_newest_checkpoints_are_retained_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for server_round in range(1, MAX_CHECKPOINTS + 3):
        save_checkpoint(tmp_path, Checkpoint(server_round, make_adapter(server_round), [], {}))

    assert len(list(tmp_path.iterdir())) == MAX_CHECKPOINTS
    assert load_latest(tmp_path, make_adapter()).server_round == MAX_CHECKPOINTS + 2


def test_the_checkpoint_of_one_round_can_be_kept(tmp_path: Path) -> None:
    for server_round in range(1, MAX_CHECKPOINTS + 4):
        save_checkpoint(tmp_path, Checkpoint(server_round, make_adapter(server_round), [], {}), keep=2)

    newest = MAX_CHECKPOINTS + 3
    assert saved_rounds(tmp_path) == [2, *range(newest - MAX_CHECKPOINTS + 1, newest + 1)]
    assert load_latest(tmp_path, make_adapter()).server_round == newest
    kept = load_checkpoint(tmp_path, 2, make_adapter())
    assert torch.equal(kept.adapter.B["x"], make_adapter(2).B["x"])


def test_failed_write_does_not_affect_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, Checkpoint(1, make_adapter(), [], {}))

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full_disk)
    with pytest.raises(RunError, match=r"checkpoint of round 2 cannot be written .*No space left.*resume="):
        save_checkpoint(tmp_path, Checkpoint(2, make_adapter(), [], {}))

    assert load_latest(tmp_path, make_adapter()).server_round == 1


@pytest.mark.parametrize("keep", [None, 1])
def test_older_checkpoints_are_deleted_on_a_full_disk(
    keep: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for server_round in (1, 2, 3):
        save_checkpoint(tmp_path, Checkpoint(server_round, make_adapter(), [], {}))
    write = checkpoint.write_json

    def small_disk(path: Path, value: object) -> None:
        if len(list(tmp_path.glob("round-*"))) > (1 if keep is None else 2):
            raise OSError(28, "No space left on device")
        write(path, value)

    monkeypatch.setattr(checkpoint, "write_json", small_disk)
    save_checkpoint(tmp_path, Checkpoint(4, make_adapter(), [], {}), keep)

    assert saved_rounds(tmp_path) == ([3, 4] if keep is None else [1, 3, 4])


def test_incomplete_checkpoints_of_an_earlier_process_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "adapter.safetensors").write_bytes(b"incomplete")
    (tmp_path / ".tmp-round-000001").mkdir()

    save_checkpoint(tmp_path, Checkpoint(2, make_adapter(), [], {}))

    assert [path.name for path in tmp_path.iterdir()] == ["round-000002"]


def test_missing_checkpoint_raises(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="contains no checkpoint"):
        load_latest(tmp_path, make_adapter())


def test_checkpoint_of_another_rank_raises(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(1, make_adapter(), [], {}))
    other = make_adapter().with_parts({"B": {"x": torch.zeros(4, 3)}})

    with pytest.raises(RunError, match="another model or rank"):
        load_latest(tmp_path, other)


def test_damaged_checkpoint_raises(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(1, make_adapter(), [], {}))
    (tmp_path / "round-000001" / "adapter.safetensors").write_bytes(b"truncated")

    with pytest.raises(RunError, match="round-000001 cannot be read"):
        load_latest(tmp_path, make_adapter())


def test_state_is_plain_json(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(1, make_adapter(), [{"accuracy": None}], {}))

    assert json.loads((tmp_path / "round-000001" / "state.json").read_text())["history"] == [{"accuracy": None}]

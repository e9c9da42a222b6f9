"""Run directories that belong to one run, and disks that cannot be written."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fedsvd.cli import main
from fedsvd.errors import ConfigError, InUseError, RunError, StoppedError
from fedsvd.runs import record
from fedsvd.runs.folder import RunFolder, read_json, write_json
from fedsvd.runs.ownership import completed_rounds, create_directory, owned, use_directory
from fedsvd.runs.record import record_run
from fedsvd.runs.storage import storage_errors


def test_directories_of_one_name_are_different(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda _: create_directory(tmp_path / "day" / "10-00-00", "key"), range(8)))

    names = ["10-00-00", *(f"10-00-00-{number}" for number in range(2, 9))]
    assert sorted(folder.name for folder in folders) == sorted(names)


@pytest.mark.parametrize(
    "result", ["metrics.jsonl", "checkpoints/round-000000/x", "adapter/x", "privacy.json", "clients/0/ledger.sqlite",
               "server/ledger.sqlite", "remote.json", "sweep.json"],
)  # fmt: skip
def test_the_directory_of_an_earlier_run_is_refused(result: str, tmp_path: Path) -> None:
    (tmp_path / result).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / result).touch()

    with pytest.raises(ConfigError, match=f"key = .*holds an earlier run .{result.split('/')[0]}.*resume={tmp_path}"):
        use_directory(tmp_path, "key")


@pytest.mark.parametrize(("result", "kind"), [("audit.json", "audit"), ("metrics.jsonl", "run")])
def test_the_directory_of_an_earlier_audit_is_refused_without_an_offer_to_resume(
    result: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / result).touch()

    assert main(["audit", "experiment=smoke", f"run_dir={tmp_path}"]) == 2

    printed = capsys.readouterr().err
    assert f"it holds an earlier {kind} ({result}), which a new one would overwrite" in printed
    assert "resume" not in printed
    if kind == "audit":
        with pytest.raises(ConfigError, match=r"earlier audit .*Choose another directory\.$"):
            use_directory(tmp_path, "key")


def test_other_directories_are_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert use_directory(tmp_path, "key") == tmp_path
    assert use_directory(tmp_path / "a" / "b", "key").is_dir()


@pytest.mark.parametrize("create", [create_directory, use_directory])
def test_a_directory_that_cannot_be_created_is_reported(create: object, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        RunError, match=r"file/a cannot be created \((Not a directory|File exists)\).*hydra.run.dir=DIR"
    ):
        create(tmp_path / "file" / "a", "hydra.run.dir")  # type: ignore[operator]


def test_a_directory_is_owned_by_one_process_until_it_ends(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from fedsvd.runs.ownership import owned
with owned(Path({str(tmp_path)!r})):
    print("owned", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"owned\n"
        with pytest.raises(InUseError, match="is in use"), owned(tmp_path):
            pass
        other.kill()
    with owned(tmp_path):
        pass


def test_completed_rounds_are_those_with_a_checkpoint(tmp_path: Path) -> None:
    assert completed_rounds(tmp_path) is None
    for name in ("round-000002", "round-000010", ".tmp", "round-x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert completed_rounds(tmp_path) == 10


def test_errors_of_the_disk_are_one_line(tmp_path: Path) -> None:
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EACCES, "Permission denied", str(tmp_path)),
        SafetensorError("I/O error: No space left on device"),
    ):
        with pytest.raises(RunError, match=f"^{tmp_path} cannot be written .*: free disk space, .*, then do this$"):  # noqa: SIM117
            with storage_errors(tmp_path, "do this"):
                raise error
    with pytest.raises(ConnectionRefusedError), storage_errors(tmp_path):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


@pytest.mark.parametrize("resumed", [True, False])
def test_a_resumed_run_started_when_its_first_process_did(resumed: bool, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"started_at": "2020-01-01", "state": "interrupted"})
    with record_run(RunFolder(tmp_path), {}, resumed=resumed):
        during = read_json(tmp_path / "run.json")

    for found in (during, read_json(tmp_path / "run.json")):
        assert (found["started_at"] == "2020-01-01") is resumed


@pytest.fixture
def limited_files() -> Iterator[None]:
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, earlier[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


def test_a_run_that_cannot_write_a_file_is_recorded_as_failed(tmp_path: Path, limited_files: None) -> None:
    with pytest.raises(RunError, match="File too large"), record_run(RunFolder(tmp_path), {"fact": 1}):
        (tmp_path / "large").write_bytes(bytes(100_000))

    found = read_json(tmp_path / "run.json")
    assert (found["state"], found["fact"]) == ("failed", 1)
    assert f"continue with fedsvd train resume={tmp_path}" in found["reason"]


def test_a_failure_is_recorded_without_space_for_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def run() -> None:
        with record_run(RunFolder(tmp_path), {"fact": "x" * 500}):
            monkeypatch.setattr(record, "write_json", full)
            raise OSError(errno.ENOSPC, "No space left on device", os.fspath(tmp_path / "adapter"))

    with pytest.raises(RunError, match="No space"):
        run()

    assert json.loads((tmp_path / "run.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StoppedError("stopped")])
def test_an_interrupted_run_has_not_failed(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), record_run(RunFolder(tmp_path), {}):
        raise error

    found = read_json(tmp_path / "run.json")
    assert (found["state"], found["reason"]) == ("interrupted", "interrupted by the user")

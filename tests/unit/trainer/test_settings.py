"""A node's settings of its trainer, its socket and what the trainer is bound to."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import rmtree

import pytest
from flwr.app import Context, RecordDict

from fedsvd.errors import LimitError, TrainerError
from fedsvd.trainer import sockets
from fedsvd.trainer.fingerprint import changed_parts, fingerprint
from fedsvd.trainer.settings import TrainerSettings, read_settings


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a short path."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    rmtree(path)


def test_settings() -> None:
    assert read_settings({"partition-id": 0}) == TrainerSettings(True, None, 600.0)
    assert read_settings({"trainer": "none"}) == TrainerSettings(False)
    assert read_settings({"trainer": "/a/b", "trainer-idle-s": 0}) == TrainerSettings(True, Path("/a/b"), 0.0)


@pytest.mark.parametrize(
    ("node_config", "message"),
    [
        ({"trainer": "off"}, "trainer = 'off' is invalid: expected \"none\", or the absolute path"),
        ({"trainer": "run/a.sock"}, "absolute path"),
        ({"trainer": True}, "trainer = True is invalid"),
        ({"trainer-idle-s": -1}, "trainer-idle-s = -1 is invalid: expected a number of seconds >= 0"),
        ({"trainer-idle-s": float("nan")}, "trainer-idle-s = nan"),
        ({"trainer-idle-s": float("inf")}, "trainer-idle-s = inf"),
        ({"trainer-idle-s": True}, "trainer-idle-s = True"),
        ({"trainer-idle-s": "600"}, "trainer-idle-s = '600'"),
        ({"trainer": "none", "trainer-idle-s": 60}, "no effect"),
    ],
)
def test_invalid_settings_are_errors(node_config: Mapping[str, object], message: str) -> None:
    with pytest.raises(LimitError, match=message):
        read_settings(node_config)


def test_directory_of_the_sockets_is_private(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    path = sockets.node_socket(2**64 - 1)
    assert path == folder / f"fedsvd-{os.geteuid()}" / "18446744073709551615.sock"

    path.parent.chmod(0o750)
    with pytest.raises(TrainerError, match=r"mode 750: expected a directory .* that nobody else can use"):
        sockets.node_socket(1)
    path.parent.chmod(0o700)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    path.parent.rename(folder / "fedsvd-12345")
    with pytest.raises(TrainerError, match="belongs to user"):
        sockets.node_socket(1)
    (folder / "fedsvd-12345").rmdir()
    (folder / "fedsvd-12345").symlink_to("/")
    with pytest.raises(TrainerError, match="is not a directory"):
        sockets.node_socket(1)


def test_directory_with_a_long_path_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(folder / ("x" * 90)))
    (folder / ("x" * 90)).mkdir()
    with pytest.raises(TrainerError, match=r"the path of a socket has at most 10[37]; set XDG_RUNTIME_DIR or TMPDIR"):
        sockets.node_socket(1)


def test_socket_is_private_and_replaces_one_without_a_listener(folder: Path) -> None:
    path = folder / "a.sock"
    assert sockets.connect(path) is None
    sockets.listen(path).close()
    assert sockets.connect(path) is None
    with sockets.listen(path):
        assert path.stat().st_mode & 0o777 == 0o600
        connected = sockets.connect(path)
        assert connected is not None
        connected.close()
        path.chmod(0o660)
        with pytest.raises(TrainerError, match="mode 660: expected a socket"):
            sockets.connect(path)
    assert [file.name for file in folder.iterdir()] == ["a.sock"]
    path.unlink()
    path.touch()
    with pytest.raises(TrainerError, match="is not a socket"):
        sockets.connect(path)


def test_fingerprint_changes_with_run_app_configuration_and_data(tmp_path: Path) -> None:
    own, held_out, public = (tmp_path / name for name in ("own.csv", "held out.csv", "public.csv"))
    for file in (own, held_out, public):
        file.write_text("a")
    node = {"data-path": str(own), "test-path": str(held_out), "ledger": str(tmp_path / "ledger")}
    run = {"overrides": f"experiment=smoke '+data.path=\"{public}\"'"}

    def current(run_id: int = 7, bundle: str = "/app") -> dict[str, str]:
        return fingerprint(Path(bundle), Context(run_id, 2, dict(node), RecordDict(), dict(run)))

    first = current()
    assert changed_parts(first, current()) == []
    # Charges do not replace a trainer.
    (tmp_path / "ledger").write_text("charged")
    assert changed_parts(first, current()) == []
    assert changed_parts(first, current(run_id=8)) == ["run"]
    assert changed_parts(first, current(bundle="/other")) == ["app"]
    for file in (own, held_out, public):
        before = current()
        file.write_text("b")
        os.utime(file, ns=(0, 0))
        assert changed_parts(before, current()) == ["data files"]
    node["max-steps"] = "1"
    assert changed_parts(first, current()) == ["node configuration", "data files"]
    own.unlink()
    run["overrides"] = "'"
    assert changed_parts(first, current()) == ["node configuration", "data files"]

"""Trainers as processes: started, kept, replaced, killed and ended, with a handler that loads nothing."""

import logging
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trivial_handler
from flwr.app import ConfigRecord, Context, Message, RecordDict
from loopback import wait_until

from fedsvd.compat.flower import context_to_bytes, message_to_bytes, set_task_identity
from fedsvd.errors import DataError, TrainerError
from fedsvd.trainer import connection, protocol, sockets
from fedsvd.trainer.protocol import Channel, Kind
from fedsvd.trainer.settings import read_settings
from fedsvd.trainer.watcher import ProcessIdentity

pytestmark = pytest.mark.slow
NODE = 2**63 + 5
BUNDLE = Path(trivial_handler.__file__).parent


@pytest.fixture(autouse=True)
def runtime_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a short path; trainers end with the test."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    set_task_identity(1, 7, NODE)
    yield folder
    for process in connection._started:
        process.kill()
        process.wait(30)
    connection._started.clear()
    shutil.rmtree(folder)


def new_context(run_id: int = 7, **node_config: str | int | float) -> Context:
    config = {key.replace("_", "-"): value for key, value in node_config.items()}
    return Context(run_id, NODE, config, RecordDict(), {"overrides": ""})


def send(action: str = "", ttl: float = 120.0, context: Context | None = None) -> ConfigRecord:
    """Send a message as a ClientApp process does, and return what the trainer has seen."""
    context = context or new_context()
    message = Message(RecordDict({"task": ConfigRecord({"action": action})}), NODE, "train", ttl=ttl)
    settings = read_settings(context.node_config)
    reply = connection.answer(message, context, settings, BUNDLE, "trivial_handler:answer")
    assert reply.metadata.dst_node_id == message.metadata.src_node_id
    return reply.content.config_records["seen"]


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def test_trainer_is_kept_for_a_run_and_replaced_for_the_next(tmp_path: Path) -> None:
    context = new_context()
    pids = {send(context=context)["pid"] for _ in range(3)}
    assert len(pids) == 1
    assert context.state.config_records["seen"]["messages"] == 3

    # Nothing of the earlier run is left in the process.
    other = send(context=new_context(run_id=8))
    assert other["messages"] == 1
    assert other["pid"] not in pids
    wait_until(lambda: has_ended(connection._started[0]), 5, "the end of the trainer")

    data = tmp_path / "data.csv"
    data.write_text("text,label\n")
    with_data = new_context(run_id=8, data_path=str(data))
    first = send(context=with_data)
    assert send(context=with_data)["messages"] == 2
    data.write_text("text,label\nmore,1\n")
    assert send(context=with_data)["pid"] != first["pid"] != other["pid"]


def test_next_trainer_starts_when_the_memory_of_the_last_one_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []
    start = connection._start

    def start_and_note(*arguments: object) -> None:
        # Connections are closed a moment before a process can be waited for.
        statuses.extend(process.wait(0.2) for process in connection._started)
        start(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(connection, "_start", start_and_note)
    send("end slowly")
    send("end slowly", context=new_context(run_id=8, trainer_idle_s=0))
    send(context=new_context(run_id=9))
    assert statuses == [0, 0, 0]


def test_only_its_user_can_use_a_trainer(runtime_folder: Path) -> None:
    send()
    folder = runtime_folder / f"fedsvd-{os.geteuid()}"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert modes.pop(folder.name) == 0o700
    assert modes == {f"{NODE}{suffix}": 0o600 for suffix in (".sock", ".log", ".lock")}
    assert os.getpgid(connection._started[0].pid) == os.getpgrp()


def test_exceptions_and_log_records_are_those_of_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    context = new_context()
    with pytest.raises(DataError, match=r"^no rows$"):
        send("refuse", context=context)
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: by zero$"):
        send("fail", context=context)
    # Changes are kept although the handler has failed.
    assert context.state.config_records["seen"]["messages"] == 2
    assert "trivial_handler.py" in caplog.text
    caplog.clear()
    caplog.set_level(logging.WARNING)
    send("log", context=context)
    found = [(record.name, record.levelname, record.getMessage().split("\n")[0]) for record in caplog.records]
    assert found[:2] == [("client.anything", "WARNING", "5 rows"), ("flwr", "ERROR", "of Flower")]
    assert found[2][0] == "py.warnings"
    assert len(found) == 3


def test_crash_costs_one_reply(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrainerError, match=r"ended by signal 6 while it worked .* Fatal Python error: Aborted"):
        send("abort")
    with pytest.raises(TrainerError, match=r"ended with exit status 3 while it worked .* a private text"):
        send("leave")

    own_data = new_context(data_path="/data/own.csv")
    with pytest.raises(TrainerError, match="see the node's log") as caught:
        send("leave", context=own_data)
    assert "a private text" not in str(caught.value)
    assert "a private text" in caplog.text
    assert send(context=own_data)["messages"] == 1


def test_trainer_past_the_deadline_is_killed_but_not_for_another_message() -> None:
    errors: list[Exception] = []

    def send_and_note(action: str, ttl: float) -> None:
        try:
            send(action, ttl)
        except TrainerError as error:
            errors.append(error)

    first = send()
    slow = threading.Thread(target=send_and_note, args=("hold", 6.0))
    slow.start()
    time.sleep(0.5)
    send_and_note("", 1.5)
    assert slow.is_alive()
    slow.join()

    assert "was busy with another message until this message's deadline" in str(errors[0])
    assert f"(process {first['pid']}) worked on this message until its deadline and was ended" in str(errors[1])
    assert connection._started[0].wait(10) == -signal.SIGKILL
    send_and_note("", -1.0)
    assert "arrived after its deadline" in str(errors[2])
    assert send()["messages"] == 1


def test_idle_trainer_ends() -> None:
    pids = {send(context=new_context(trainer_idle_s=0))["pid"] for _ in range(2)}
    assert len(pids) == 2
    send(context=new_context(trainer_idle_s=0.2))
    for process in connection._started:
        assert process.wait(20) == 0


def test_concurrent_messages_start_one_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ConfigRecord] = []
    start = connection._start

    def start_slowly(*arguments: object) -> None:
        time.sleep(0.3)
        start(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(connection, "_start", start_slowly)
    threads = [threading.Thread(target=lambda: seen.append(send())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record["pid"] for record in seen}) == 1
    assert sorted(record["messages"] for record in seen) == [1, 2, 3, 4]


def test_trainer_ends_with_its_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "600"]) as executor:
        identity = ProcessIdentity.of(executor.pid)
        monkeypatch.setattr("os.getppid", lambda: executor.pid)
        send()
        assert identity.is_alive
        assert not ProcessIdentity(executor.pid, "1").is_alive
        executor.kill()
    assert not identity.is_alive
    assert connection._started[0].wait(20) == 0


def test_trainer_ends_if_nobody_waits_for_its_reply() -> None:
    context = new_context()
    send(context=context)
    path = sockets.node_socket(NODE)
    connected = sockets.connect(path)
    assert connected is not None
    channel = Channel(connected, time.monotonic() + 30)
    # As of a ClientApp process that is killed.
    message = Message(RecordDict({"task": ConfigRecord({"action": "hang"})}), NODE, "train")
    bound = connection.fingerprint(BUNDLE, context)
    request = protocol.Request(
        protocol.VERSION, bound, str(BUNDLE), "trivial_handler:answer", time.time() + 60, 600.0, 30, 1
    )
    protocol.send_request(channel, request)
    channel.expect(Kind.ACCEPTED)
    channel.send(Kind.MESSAGE, message_to_bytes(message))
    channel.send(Kind.CONTEXT, context_to_bytes(context))
    time.sleep(0.5)
    assert not has_ended(connection._started[0])
    channel.close()
    wait_until(lambda: has_ended(connection._started[0]), 20, "the end of the trainer")


def test_trainer_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "VERSION", 0)
    with pytest.raises(TrainerError, match="refuses this message: the request has version 0 of the protocol"):
        send()


def test_trainer_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A package that hides the real one.
    (tmp_path / "flwr.py").write_text("raise ImportError('no Flower here')")
    monkeypatch.setattr("test_connection.BUNDLE", tmp_path)
    with pytest.raises(TrainerError, match=r"ended with exit status 1 at its start; .*no Flower here"):
        send()

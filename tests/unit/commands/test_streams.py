"""Standard output whose reader is gone, or whose encoding lacks characters; interrupts that a library catches."""

import io
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from fedsvd.commands.interrupts import InterruptGuard
from fedsvd.commands.streams import TolerantStream, tolerant_streams


def test_text_for_a_reader_that_is_gone_is_discarded() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        stream = TolerantStream(pipe)
        for _ in range(3):
            print("x" * 100_000, file=stream, flush=True)  # type: ignore[call-overload]
            Console(file=stream).print("more")  # type: ignore[arg-type]


def test_a_full_disk_is_an_error_that_names_the_output() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        with pytest.raises(OSError, match="the output of this command"):
            TolerantStream(full).write("x" * 100_000)
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_characters_that_an_encoding_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    table = Table("ε")
    table.add_row("≤ 3")
    with tolerant_streams():
        print("ε ≤ 3")
        Console().print(table)
        sys.stdout.flush()

    assert raw.getvalue().startswith(b"? ? 3\n")
    assert sys.stdout.errors == "strict"


def test_an_interrupt_that_is_caught_is_raised_again() -> None:
    guard = InterruptGuard()

    def catch() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            pass
        # As after an optional import that failed.
        for _ in range(100):
            time.sleep(0.1)

    with pytest.raises(KeyboardInterrupt), guard:
        catch()
    assert guard.received
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_cleanup_after_an_interrupt_is_not_interrupted() -> None:
    cleaned = []

    def clean() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            time.sleep(1.5)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt), InterruptGuard():
        clean()
    assert cleaned

"""Ctrl-C at the end of a command."""

import signal
from types import TracebackType

import pytest

from fedsvd.cli import main
from fedsvd.commands.interrupts import InterruptGuard


def test_an_interrupt_while_a_command_ends_is_reported_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, leave = signal.getsignal(signal.SIGINT), InterruptGuard.__exit__

    def interrupted(
        guard: InterruptGuard,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.raise_signal(signal.SIGINT)
        leave(guard, kind, error, trace)

    monkeypatch.setattr(InterruptGuard, "__exit__", interrupted)

    assert main(["train", "train.lerning_rate=1"]) == 130
    assert capsys.readouterr().err.splitlines()[-2].startswith("interrupted: ")
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_after_the_end_of_a_command_is_ignored() -> None:
    guard = InterruptGuard()
    with guard:
        pass
    guard._interrupt(signal.SIGINT, None)
    assert not guard.received

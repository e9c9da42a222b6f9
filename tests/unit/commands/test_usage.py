"""``--help`` of the program and of every command."""

import pytest

from fedsvd.cli import _COMMANDS, main
from fedsvd.commands.usage import USAGE


@pytest.mark.parametrize("command", [name for name in _COMMANDS if name != "train"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"\n  {command} " in USAGE
    for flag in ("-h", "--help"):
        assert main([command, flag]) == 0
        output = capsys.readouterr().out
        assert output.startswith(f"usage: fedsvd {command} ")
        assert len(output.splitlines()) > 4


def test_errors_show_the_usage_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy"]) == 2
    assert "privacy plan [KEY=VALUE …] | fedsvd privacy ledger PATH" in capsys.readouterr().err

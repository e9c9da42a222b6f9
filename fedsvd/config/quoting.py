"""Quoting of values for Hydra's override grammar, and of commands for a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException


def quote(text: str) -> str:
    """Quote a text so that Hydra and OmegaConf read exactly this text."""
    # OmegaConf would resolve ${…}: it reads a backslash before it as an escape, and two backslashes as one.
    escaped = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    return QuotedString(escaped, Quote.single).with_quotes()


def path_override(key: str, path: str | Path) -> str:
    """Return the override that sets a key to a path."""
    return f"{key}={quote(str(path))}"


def read_path(value: str) -> str:
    """Return the path in an override that a shell passed, where it may or may not be quoted for Hydra.

    A path that exists is taken as it is, whatever characters it contains.
    """
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0] or Path(value).exists():
        return value
    try:
        parsed = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return value
    return re.sub(r"(\\*)\\\$\{", lambda match: match[1][: len(match[1]) // 2] + "${", str(parsed))


def plain_text(overrides: Iterable[str], key: str) -> str | None:
    """Return the text that one override sets a key to, which may be a key of Hydra.

    Returns:
        None if no override or several set the key, or if the value is not a text, is empty, or depends on other keys.
    """
    found = [item for item in overrides if item.partition("=")[0] == key]
    if len(found) != 1 or "${" in found[0]:
        return None
    try:
        value = OverridesParser.create().parse_override(found[0]).value()
    except HydraException:
        return None
    return value if isinstance(value, str) and value else None


def command(arguments: Sequence[str]) -> str:
    """Return the command line of ``fedsvd`` with these arguments, which can be pasted into a shell."""
    return shlex.join(["fedsvd", *arguments])


def resume_command(folder: Path, *, sweep: bool = False) -> str:
    """Return the command that resumes a run or a sweep."""
    return command(["train", *(["-m"] if sweep else []), f"resume={folder}"])

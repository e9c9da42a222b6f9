"""Files of the repository that a script generates."""

import sys
from pathlib import Path


def write_or_check(path: Path, text: str) -> None:
    """Write a generated file; with --check, only exit with an error where it is out of date."""
    if "--check" not in sys.argv[1:]:
        path.write_text(text, encoding="utf-8")
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path} is out of date: run scripts/{Path(sys.argv[0]).stem}.")

"""The commands that the documentation shows."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Tools of others, whose words only they can check.
FOREIGN = (
    "docker", "git", "kill", "openssl", "pip", "pip-compile", "python", "python3", "ssh-keygen", "curl",
    "flower-superlink", "flower-supernode", "flower-superexec", "export", "cp", "mkdir", "tensorboard", "mlflow", "ray",
    "cd",
)  # fmt: skip
KEY_VALUE = re.compile(r"^[+~]?[\w.@/]+=")


def blocks(page: Path) -> Iterator[str]:
    """Yield fenced blocks of commands: those that name no language, or a shell's."""
    text = page.read_text(encoding="utf-8")
    for language, body in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        if language in ("", "bash", "sh", "console"):
            yield body


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the commands of blocks that begin with one; where some lines begin with ``$``, the others are output."""
    for body in blocks(page):
        lines = [line.strip() for line in body.replace("\\\n", " ").splitlines() if line.strip()]
        marked = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        if marked or is_command(lines[0]):
            yield from (shlex.split(line, comments=True) for line in marked or lines if not line.startswith("#"))


def is_command(line: str) -> bool:
    program = line.split(" ")[0].removeprefix("./").removeprefix(".venv/bin/")
    return program in ("fedsvd", "flwr", *FOREIGN) or program.startswith("scripts/")


ALL = [(page.name, words) for page in PAGES for words in commands(page) if words]

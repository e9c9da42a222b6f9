"""What Dockerfile, docker-compose.yml and scripts/certs say, for tests without a Docker engine."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = re.compile(r"\$\{(\w+):?-([^}]*)\}")


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, with continued lines joined and comments removed."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def values(name: str) -> list[str]:
    return [value for key, value in instructions() if key == name]


def compose() -> dict[str, Any]:
    text = DEFAULT.sub(lambda match: match[2], (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def services() -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = compose()["services"]
    return result


def certs_command(folder: Path, *arguments: str) -> list[str]:
    # Not with scripts/certs itself, which would write an .env file to the checkout.
    return [sys.executable, str(ROOT / "scripts" / "certs.py"), "--folder", str(folder), *arguments]


def make_certs(folder: Path, *arguments: str) -> None:
    subprocess.run(certs_command(folder, *arguments), check=True, cwd=folder.parent, capture_output=True)

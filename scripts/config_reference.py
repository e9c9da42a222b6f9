"""Write docs/configuration.md from the schema, the YAML files and their comments; --check only compares."""

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from fedsvd.config import Config
from fedsvd.config.audit import AuditConfig
from fedsvd.config.compare import CompareConfig
from fedsvd.config.compose import as_dict, compose, compose_audit, compose_compare, conf_dir
from fedsvd.config.validate import allowed
from fedsvd.methods import METHODS

PATH = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
GROUPS = {name: hint for name, hint in get_type_hints(Config).items() if dataclasses.is_dataclass(hint)}
START = """\
# Configuration reference

Made by `scripts/config_reference` from the schema in `fedsvd/config/` and the files in `conf/`; a test holds that it is
up to date. `fedsvd train --cfg job` prints what a command line comes to, and every wrong key or value ends in one line
that says what is allowed.

A word `GROUP=OPTION` takes one of the files of a group, `GROUP.KEY=VALUE` sets one key, and `experiment=NAME` sets many
at once; what is set by hand wins. The defaults below are those of a bare `fedsvd train`.
"""


def reference() -> str:
    """Return the whole page."""
    defaults = as_dict(compose([]))
    parts = [START, "## Top level\n", *_keys(Config, defaults, "", skip={"method", *GROUPS})]
    parts += ["\n## method\n", *_methods()]
    for name, schema in GROUPS.items():
        parts += [f"\n## {name}\n", *_options(name), "", *_keys(schema, defaults[name], f"{name}.")]
    parts += ["\n## experiment\n", *_options("experiment")]
    audit, compare = dataclasses.asdict(compose_audit([])[1]), dataclasses.asdict(compose_compare([])[1])
    parts += ["\n## audit\n\nOf `fedsvd audit` alone.\n", *_keys(AuditConfig, audit, "audit.")]
    parts += ["\n## compare\n\nOf `fedsvd compare` alone.\n", *_keys(CompareConfig, compare, "compare.")]
    return "\n".join(parts) + "\n"


def _keys(schema: type, values: dict[str, Any], prefix: str, skip: set[str] | None = None) -> Iterator[str]:
    meanings = dict(_attributes(schema.__doc__ or ""))
    yield "| key | default | allowed | meaning |\n|---|---|---|---|"
    for name, hint in get_type_hints(schema, include_extras=True).items():
        if name in (skip or ()):
            continue
        cells = [f"`{prefix}{name}`", _shown(values[name]), allowed(hint).words, meanings[name]]
        yield "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield names and meanings of a docstring's Attributes."""
    section = docstring.partition("Attributes:\n")[2]
    for found in re.finditer(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, re.MULTILINE):
        yield found[1], " ".join(found[2].split()).replace("``", "`")


def _options(group: str) -> Iterator[str]:
    yield f"| `{group}=` | what it is |\n|---|---|"
    folder = conf_dir() / group
    for path in sorted(folder.rglob("*.yaml")):
        yield f"| `{path.relative_to(folder).with_suffix('').as_posix()}` | {_escaped(_comment(path))} |"


def _comment(path: Path) -> str:
    """Return what a YAML's opening comment says, its commands left out."""
    opening = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))
    lines = [line.removeprefix("#").strip() for line in (opening[0] if opening else "").splitlines()]
    said = [line for line in lines if not line.startswith(("fedsvd ", "@package"))]
    return " ".join(said) or f"`{lines[0]}`"


def _methods() -> Iterator[str]:
    yield "| `method=` | what it is | options and their defaults |\n|---|---|---|"
    for name in METHODS:
        values = dict(compose([f"method={name}"]).method)
        options = ", ".join(f"`{key}={value}`" for key, value in values.items() if key != "name")
        yield f"| `{name}` | {_escaped(_comment(conf_dir() / 'method' / f'{name}.yaml'))} | {options} |"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(value)
    if isinstance(value, (list, tuple)):
        return "`[" + ", ".join(map(str, value)) + "]`"
    return "`null`" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write the page, or say that it is out of date."""
    page = reference()
    if "--check" in sys.argv[1:]:
        if not PATH.is_file() or PATH.read_text(encoding="utf-8") != page:
            sys.exit(f"{PATH} is out of date: run scripts/config_reference.")
        return
    PATH.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

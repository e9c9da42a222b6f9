"""``fedsvd doctor``: look a machine over, and say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsvd import doctor
from fedsvd.assets import cache_folder
from fedsvd.doctor import Finding
from fedsvd.errors import ConfigError, FedSVDError, RunError

_USAGE = (
    "fedsvd doctor [certs=FOLDER] [superlink=HOST:PORT] [ledger=FILE] [runs=FOLDER] [node='NODE CONFIG' KEY=VALUE …]"
)
_STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}
_PORTS = ((8000, "SuperLink"), (9094, "SuperNode"))


@dataclass(frozen=True)
class _Asked:
    """What the words ask for beside the machine itself."""

    certs: str | None = None
    superlink: str | None = None
    ledger: str | None = None
    runs: str = "runs"
    node: str | None = None


def run(words: Sequence[str]) -> None:
    """Run all checks that can be made here, and print what was found.

    Raises:
        ConfigError: Words that are not understood.
        RunError: Something will not work.
    """
    ours = {field.name for field in fields(_Asked)}
    given = dict(word.split("=", 1) for word in words if word.split("=", 1)[0] in ours and "=" in word)
    overrides = [word for word in words if word.split("=", 1)[0] not in ours]
    asked = _Asked(**given)
    if any("=" not in word for word in words) or (overrides and asked.node is None):
        raise ConfigError(f"fedsvd doctor {' '.join(words)} is not understood; write {_USAGE}.")
    findings = list(_findings(asked, overrides))
    _print(findings)
    bad = sum(finding.state == "bad" for finding in findings)
    if bad:
        raise RunError(f"{bad} of {len(findings)} checks failed; what to do about each stands above.")


def _findings(asked: _Asked, overrides: Sequence[str]) -> Iterator[Finding]:
    yield doctor.check_python()
    yield from doctor.check_packages()
    yield doctor.check_gpu()
    for port, what in _PORTS:
        yield doctor.check_port(port, what)
    yield doctor.check_folder(Path(asked.runs), "run folders")
    yield doctor.check_folder(cache_folder(), "models and texts")
    certs = Path(asked.certs or "certs")
    if asked.certs or certs.is_dir():
        yield from doctor.check_certificates(certs)
    if asked.superlink:
        trusted = certs / "ca.crt"
        yield doctor.check_superlink(asked.superlink, trusted if trusted.is_file() else None)
    if asked.ledger:
        yield _check_ledger(Path(asked.ledger))
    if asked.node is not None:
        yield from _check_node(asked.node, overrides)


def _check_ledger(path: Path) -> Finding:
    from fedsvd.privacy.ledger import Ledger  # Imported late: it loads torch.

    what = f"ledger {path}"
    if not path.exists():
        folder = doctor.check_folder(path.parent, "ledger")
        if folder.state == "bad":
            return folder
        return Finding(
            what, "note", "not there", "The first private round makes it. If there was one, restore the backup."
        )
    try:
        with Ledger.read(path) as ledger:
            entries = ledger.entries()
    except FedSVDError as error:
        return Finding(what, "bad", str(error), "fedsvd privacy ledger PATH shows what it says; never delete it.")
    folder = doctor.check_folder(path.parent, "ledger")
    if folder.state == "bad":
        return folder
    runs = len({entry.run_id for entry in entries})
    return Finding(what, "ok", f"whole; {len(entries)} charges of {runs} runs")


def _check_node(node_config: str, overrides: Sequence[str]) -> Iterator[Finding]:
    from fedsvd.launch import check_node  # Imported late: it loads torch.

    try:
        yield from (Finding("node", "ok", said) for said in check_node(node_config, overrides))
    except FedSVDError as error:
        yield Finding("node", "bad", str(error), "docs/deployment.md lists the keys of a node's configuration.")


def _print(findings: Sequence[Finding]) -> None:
    table = Table("", "check", "found", box=None, pad_edge=False)
    for finding in findings:
        said = Text(finding.found)
        if finding.advice:
            said.append(f"\n→ {finding.advice}", style="italic")
        table.add_row(Text(finding.state, style=_STYLES[finding.state]), Text(finding.what), said)
    Console().print(table)

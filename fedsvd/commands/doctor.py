"""``fedsvd doctor``: check a machine and suggest fixes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedsvd import doctor
from fedsvd.assets import cache_folder
from fedsvd.commands.usage import command_usage
from fedsvd.doctor import Finding
from fedsvd.errors import ConfigError, FedSVDError, RunError
from fedsvd.report.literal import literal

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}
_PORTS = ((8000, "SuperLink"), (9094, "SuperNode"))


@dataclass(frozen=True)
class _Options:
    """Options of the command: what to check in addition to the machine itself.

    Attributes:
        certs: Directory of certificates and keys.
        superlink: Address of a SuperLink, ``host:port``.
        ledger: Path of a privacy ledger.
        runs: Directory of run directories.
        node: Configuration of a node, as passed to its SuperNode.
    """

    certs: str | None = None
    superlink: str | None = None
    ledger: str | None = None
    runs: str = "runs"
    node: str | None = None


def run(arguments: Sequence[str]) -> None:
    """Run all applicable checks and print their results.

    Raises:
        ConfigError: The arguments are invalid.
        RunError: At least one check failed.
    """
    names = {field.name for field in fields(_Options)}
    values = dict(item.split("=", 1) for item in arguments if item.split("=", 1)[0] in names and "=" in item)
    overrides = [item for item in arguments if item.split("=", 1)[0] not in names]
    options = _Options(**values)
    if any("=" not in item for item in arguments) or (overrides and options.node is None):
        raise ConfigError(f"invalid arguments: fedsvd doctor {' '.join(arguments)}. Usage: {command_usage('doctor')}")
    findings = list(_run_checks(options, overrides))
    _print_table(findings)
    failed = sum(finding.status == "error" for finding in findings)
    if failed:
        raise RunError(f"{failed} of {len(findings)} checks failed; see the suggested fixes above.")


def _run_checks(options: _Options, overrides: Sequence[str]) -> Iterator[Finding]:
    yield doctor.check_python()
    yield from doctor.check_packages()
    yield doctor.check_gpu()
    for port, service in _PORTS:
        yield doctor.check_port(port, service)
    yield doctor.check_folder(Path(options.runs), "run directories")
    yield doctor.check_folder(cache_folder(), "model and data cache")
    certs = Path(options.certs or "certs")
    if options.certs or certs.is_dir():
        yield from doctor.check_certificates(certs)
    if options.superlink:
        root_certificate = certs / "ca.crt"
        yield doctor.check_superlink(options.superlink, root_certificate if root_certificate.is_file() else None)
    if options.ledger:
        yield _check_ledger(Path(options.ledger))
    if options.node is not None:
        yield from _check_node(options.node, overrides)


def _check_ledger(path: Path) -> Finding:
    from fedsvd.privacy.ledger import Ledger  # Imported late: it loads torch.

    check = f"ledger {path}"
    if not path.exists():
        folder = doctor.check_folder(path.parent, "ledger")
        if folder.status == "error":
            return folder
        return Finding(
            check, "warning", "not found", "The first private round creates it. If it existed before, restore a backup."
        )
    try:
        with Ledger.read(path) as ledger:
            entries = ledger.entries()
    except FedSVDError as error:
        return Finding(check, "error", str(error), "fedsvd privacy ledger PATH shows its content; never delete it.")
    folder = doctor.check_folder(path.parent, "ledger")
    if folder.status == "error":
        return folder
    runs = len({entry.run_id for entry in entries})
    return Finding(check, "ok", f"intact; {len(entries)} charges from {runs} runs")


def _check_node(node_config: str, overrides: Sequence[str]) -> Iterator[Finding]:
    from fedsvd.launch import check_node  # Imported late: it loads torch.

    try:
        yield from (Finding("node", "ok", detail) for detail in check_node(node_config, overrides))
    except FedSVDError as error:
        yield Finding("node", "error", str(error), "docs/deployment.md lists the keys of a node configuration.")


def _print_table(findings: Sequence[Finding]) -> None:
    table = Table("status", "check", "result", box=None, pad_edge=False)
    for finding in findings:
        result = literal(finding.detail, keep="\n")
        if finding.advice:
            result.append("\n").append(literal(f"→ {finding.advice}", "italic", keep="\n"))
        table.add_row(literal(finding.status, _STYLES[finding.status]), literal(finding.check), result)
    Console().print(table)

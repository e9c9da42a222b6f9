"""``fedsvd audit``: attack one client of a federation, and hold the outcome against what is claimed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from fedsvd.config.compose import compose_audit
from fedsvd.errors import AuditError, ConfigError


def run(words: Sequence[str]) -> None:
    """Audit the run that the overrides describe.

    Raises:
        ConfigError: A key, type or value that is not allowed, before anything is loaded.
        AuditError: The audit contradicts the claim.
    """
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"fedsvd audit has no option {word!r}: it takes KEY=VALUE only, one run at a time.")
        if word.startswith("hydra."):
            raise ConfigError(f"{word} is not for fedsvd audit: choose its folder with run_dir=FOLDER.")
    config, settings = compose_audit(words)
    # Imported late: it loads torch and transformers, which a wrong key should not have to wait for.
    from fedsvd.audit import run_audit
    from fedsvd.report.audit_tables import attacks_table, audit_table, verdict

    console = Console()
    folder = Path(config.run_dir) if config.run_dir else Path("runs", "audit", f"{datetime.now():%Y-%m-%d/%H-%M-%S}")
    found = run_audit(config, settings, folder, lambda line: console.print(line, style="dim"))
    console.print(audit_table(found))
    console.print(attacks_table(found))
    console.print(f"run folder  {folder}", soft_wrap=True, highlight=False)
    if found["contradicts_claim"]:
        raise AuditError(verdict(found))
    console.print(verdict(found), soft_wrap=True, highlight=False)

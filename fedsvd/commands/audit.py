"""``fedsvd audit``: attack one client of a federation and compare the result with the claimed ε."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from fedsvd.commands.arguments import normalize
from fedsvd.commands.output import warn_left_out
from fedsvd.config.compose import compose_audit
from fedsvd.config.search_path import is_search_path
from fedsvd.errors import AuditError, ConfigError
from fedsvd.report.literal import literal
from fedsvd.runs.ownership import create_directory, use_directory


def run(arguments: Sequence[str]) -> None:
    """Audit the run that the overrides describe.

    Raises:
        ConfigError: A key, type or value is invalid; raised before anything is loaded.
        AuditError: The audit contradicts the claimed ε.
    """
    arguments = normalize(arguments)
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(
                f"fedsvd audit has no option {argument!r}: it accepts only KEY=VALUE overrides, for one run at a time."
            )
        if argument.startswith("hydra.") and not is_search_path(argument):
            raise ConfigError(f"fedsvd audit does not accept {argument}; set the run directory with run_dir=DIR.")
    config, settings = compose_audit(arguments)
    # Imported late: importing torch and transformers would delay the errors above.
    from fedsvd.audit import check_audit, run_audit
    from fedsvd.report.audit_tables import attacks_table, audit_table, verdict
    from fedsvd.runtime.data import left_out

    console = Console()
    check_audit(config, settings)
    warn_left_out(left_out(config))
    folder = _new_directory(config.run_dir)
    result = run_audit(config, settings, folder, lambda line: console.print(literal(line, "dim")))
    console.print(audit_table(result))
    console.print(attacks_table(result))
    console.print(literal(f"run directory  {folder}"), soft_wrap=True)
    if result["contradicts_claim"]:
        raise AuditError(verdict(result))
    console.print(verdict(result), soft_wrap=True, highlight=False)


def _new_directory(run_dir: str | None) -> Path:
    if run_dir is not None:
        return use_directory(Path(run_dir), "run_dir", can_resume=False)
    return create_directory(Path("runs", "audit", f"{datetime.now():%Y-%m-%d/%H-%M-%S}"), "run_dir")

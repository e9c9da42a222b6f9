"""The figures of docs/robustness.json, and the tables that docs/robustness.md has of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES, PAGE = ROOT / "docs" / "robustness.json", ROOT / "docs" / "robustness.md"
BEGIN, END = "<!-- from docs/robustness.json: begin -->", "<!-- end -->"
NAMES = {
    "changed_contents": "replies changed after Flower has read them",
    "changed_bytes": "replies changed in the bytes that Flower reads",
    "own_data_files": "own-data files: CSV, JSON lines, Parquet",
    "overrides": "overrides of a run",
    "node_configurations": "values of node configurations",
    "node_configuration_texts": "node configurations as text",
    "damaged_ledgers": "ledgers with damaged bytes",
    "trainer": "kills of a node's trainer while it answers",
    "client": "kills of a client while it answers",
    "clients of one ledger": "kills of clients that open, migrate and charge one ledger",
}


def read() -> dict[str, Any]:
    """Return the figures by part."""
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}


def write(part: str, figures: dict[str, Any]) -> None:
    """Replace the figures of one part, and keep those of the others."""
    text = json.dumps(read() | {part: figures}, indent=1, ensure_ascii=False, sort_keys=True)
    FIGURES.write_text(text + "\n", encoding="utf-8")


def tables(figures: dict[str, Any]) -> str:
    """Return the tables in Markdown."""
    lines = ["| tried | number | what happened | faults |", "|---|---|---|---|", *_rows(figures), ""]
    lines += ["| mutants of | all | tried | killed | survivors with a reason | other survivors |"]
    lines += ["|---|---|---|---|---|---|", *_mutant_rows(figures["mutants"]["groups"])]
    return "\n".join(lines)


def _rows(figures: dict[str, Any]) -> Iterator[str]:
    for part in ("replies", "inputs"):
        for name, check in figures[part]["checks"].items():
            happened = ", ".join(f"{count:,} {outcome}" for outcome, count in check["outcomes"].items())
            yield f"| {NAMES[name]} | {check['tried']:,} | {happened} | {len(check['faults'])} |"
    for name, kills in figures["kills"]["killed"].items():
        counts = ", ".join(
            f"{value:,} {key.replace('_', ' ')}" for key, value in kills.items() if key not in ("tried", "faults")
        )
        yield f"| {NAMES[name]} | {kills['tried']:,} | {counts} | {len(kills['faults'])} |"


def _mutant_rows(groups: dict[str, Any]) -> Iterator[str]:
    for group in groups.values():
        code = ", ".join(f"`{name}`" for name in group["code"])
        explained = sum(bool(one["reason"]) for one in group["survivors"])
        share = group["killed"] / group["tried"]
        yield (
            f"| {code} | {group['mutants']:,} | {group['tried']:,} | {group['killed']:,} ({share:.0%}) | {explained} | "
            f"{len(group['survivors']) - explained} |"
        )


def page(text: str, figures: dict[str, Any]) -> str:
    """Return the page with the tables of these figures."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables(figures)}\n{END}{rest.partition(END)[2]}"


def update() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")

"""The part of a report on a user's rows that are left out."""

from __future__ import annotations

from collections.abc import Sequence

from fedsvd.report.document import Block, TableBlock
from fedsvd.report.loaded_runs import Run

_MAX_NUMBERS = 20


def left_out_blocks(run: Run) -> Sequence[Block]:
    """Return a table of the rows that are left out, by file and reason; empty if there are none."""
    rows = [
        [item["source"], reason, f"{found['count']:,} of {item['num_rows']:,}", _numbers(found["rows"], found["count"])]
        for item in run.record.get("left_out") or ()
        for reason, found in item["reasons"].items()
    ]
    if not rows:
        return []
    return [TableBlock(["file", "reason", "rows", "numbers of the rows"], rows, "Rows of the data that are left out")]


def _numbers(numbers: Sequence[int], count: int) -> str:
    return ", ".join(map(str, numbers[:_MAX_NUMBERS])) + (", …" if count > _MAX_NUMBERS else "")

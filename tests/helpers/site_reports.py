"""Invented reports of sites, as files that their nodes can read."""

from pathlib import Path

LABELS = ("benign", "malignant")
# What a node's owner writes in .env, after docs/deployment.md.
NODE_CONFIG = (
    'partition-id={number} ledger="/app/private/ledger.sqlite" data-path="/data/reports.csv" text-column="finding" '
    'label-column="outcome" max-epsilon=6.0 max-delta=1e-5'
)
RUN = [
    "experiment=smoke", "data=node", "data.labels=[benign,malignant]", "data.test_path=/data/held_out.csv",
    "federation.num_clients=3", "federation.weighting=uniform", "plots=false",
]  # fmt: skip


def write_reports(folder: Path, number: int) -> Path:
    """Write the reports of a site, with the column names of its own, and return the directory that has only them."""
    lines = [f"case {number}.{row}: the tissue is {label},{label}" for row in range(40) for label in LABELS]
    data = folder / f"data-{number}"
    data.mkdir()
    (data / "reports.csv").write_text("\n".join(["finding,outcome", *lines]) + "\n")
    return data


def write_held_out(folder: Path) -> Path:
    """Write the server's held-out reports, and return the directory that has only them."""
    data = folder / "data-server"
    data.mkdir()
    lines = [f"another case {row}: the tissue is {label},{label}" for row in range(10) for label in LABELS]
    (data / "held_out.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return data

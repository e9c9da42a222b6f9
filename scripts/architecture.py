"""Draw docs/architecture.svg from the layers contract in pyproject.toml; --check only compares."""

import tomllib
from pathlib import Path

from generated import write_or_check
from jinja2 import Environment

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "docs" / "architecture.svg"
# What each package contains, in at most two short lines. A package without a caption, or a caption without a package,
# fails the test of this drawing.
CAPTIONS = {
    "fedsvd.cli": ("the fedsvd command",),
    "fedsvd.commands": ("one module per subcommand:", "train, predict, report, privacy, …"),
    "server": ("Flower ServerApp: strategy,", "reply checks, checkpoints"),
    "fedsvd.audit": ("empirical privacy", "audit"),
    "fedsvd.comparison": ("tuned comparisons", "of methods"),
    "fedsvd.watch": ("a page of a run", "in progress"),
    "client": ("Flower ClientApp: one local round,", "node limits, ledger charges"),
    "fedsvd.launch": ("in-process, Ray and", "remote runs; sweeps"),
    "fedsvd.trained": ("predict, evaluate,", "export, model card"),
    "fedsvd.runtime": ("what both apps load once per process:", "data, model, caches, one private round"),
    "fedsvd.flower": ("strategies for", "any Flower app"),
    "fedsvd.report": ("tables, plots, report,", "privacy statement"),
    "fedsvd.secagg": ("secure aggregation:", "masks, keys, shares"),
    "fedsvd.training": ("training loop, per-example", "gradients, frozen-layer cache"),
    "fedsvd.data": ("datasets,", "partitions"),
    "fedsvd.doctor": ("installation", "checks"),
    "fedsvd.methods": ("FedSVD and", "its rivals"),
    "fedsvd.models": ("base models,", "tokenizers"),
    "fedsvd.privacy": ("accounting,", "ledger, DP-SGD"),
    "fedsvd.tracking": ("TensorBoard,", "W&B, MLflow"),
    "fedsvd.wire": ("messages,", "payloads"),
    "fedsvd.config": ("schema, validation,", "Hydra composition"),
    "fedsvd.lora": ("adapters, PEFT access,", "refactorization by SVD"),
    "fedsvd.runs": ("run directory,", "run record"),
    "fedsvd.trainer": ("a process that keeps a real node's model and data", "from message to message"),
    "fedsvd.assets": ("models and texts from registry packages",),
    "fedsvd.compat": ("private names", "of Flower and Opacus"),
    "fedsvd.services": ("Flower's services,", "with a quieter log"),
    "fedsvd.errors": ("the exception hierarchy",),
}
APPS = ("server", "client")
WIDTH, LEFT, GAP, ROW, BOX = 1180, 90, 10, 86, 64
TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" font-family="sans-serif" role="img">
<title>Packages of fedsvd: each imports only from the layers below it</title>
<rect width="100%" height="100%" fill="#ffffff"/>
<defs><marker id="tip" markerWidth="9" markerHeight="9" refX="4" refY="7" orient="0">
<path d="M0,0 L8,0 L4,8 z" fill="#555555"/></marker></defs>
<line x1="60" y1="24" x2="60" y2="{{ height - 26 }}" stroke="#555555" stroke-width="2" marker-end="url(#tip)"/>
<text transform="translate(44 {{ height // 2 }}) rotate(-90)" text-anchor="middle" font-size="15" fill="#555555">\
imports</text>
{% for box in boxes %}
<rect x="{{ box.x }}" y="{{ box.y }}" width="{{ box.width }}" height="{{ box_height }}" rx="6" fill="{{ box.fill }}" \
stroke="#33475b"/>
<text x="{{ box.x + 10 }}" y="{{ box.y + 21 }}" font-size="14" font-weight="bold" fill="#1b2733">{{ box.name }}</text>
{% for line in box.caption %}
<text x="{{ box.x + 10 }}" y="{{ box.y + 38 + 16 * loop.index0 }}" font-size="12" fill="#33475b">{{ line }}</text>
{% endfor %}
{% endfor %}
</svg>
"""


def layers() -> list[list[str]]:
    """Return the layers of the import contract, from the top down, each a list of packages."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (contract,) = (contract for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def drawing() -> str:
    """Return the drawing as SVG.

    Raises:
        ValueError: The packages of the contract are not those that have a caption.
    """
    rows = layers()
    if unmatched := {name for row in rows for name in row} ^ CAPTIONS.keys():
        raise ValueError(f"packages without a caption, or captions without a package: {', '.join(sorted(unmatched))}")
    boxes = []
    for level, row in enumerate(rows):
        width = (WIDTH - LEFT - GAP * len(row)) // len(row)
        for place, name in enumerate(row):
            boxes.append(
                {
                    "name": name, "caption": CAPTIONS[name], "width": width, "x": LEFT + place * (width + GAP),
                    "y": 12 + level * ROW, "fill": "#ffe9c7" if name in APPS else "#dbe9f6",
                }
            )  # fmt: skip
    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=True, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE).render(
        boxes=boxes, width=WIDTH, height=12 + ROW * len(rows), box_height=BOX
    )


if __name__ == "__main__":
    write_or_check(PATH, drawing())
